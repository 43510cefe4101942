"""The numpy oracles: slow, readable, one to one with the papers. Every kernel is tested against them."""
