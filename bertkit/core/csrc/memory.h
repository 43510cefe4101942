// Places in one piece of memory, for the files that are compiled for one instruction set each.
#pragma once

#include <cstdint>

namespace bertkit {
namespace {

constexpr int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

/// Walks through memory in pieces that begin at multiples of 64 bytes from where it began.
class Walk {
public:
    explicit Walk(char* base) : base_(base) {}

    /// The next `count` items, or anything where there is no memory.
    template <typename Item>
    Item* take(int64_t count) {
        Item* items = reinterpret_cast<Item*>(uintptr_t(base_) + uintptr_t(size_));
        size_ += round_up(count * int64_t(sizeof(Item)), 64);
        return items;
    }

    /// Bytes so far.
    int64_t size() const { return size_; }

private:
    char* base_;
    int64_t size_ = 0;
};

}  // namespace
}  // namespace bertkit
