// Threads that wait for work, a barrier between them, and scratch memory: what every kernel of this library runs on.
//
// Nothing is started before the first call that asks for more than one thread.
#pragma once

#include <cstdint>

struct bk_openmp;

namespace bertkit {

constexpr int kMostThreads = 256;

class Barrier;

/// One of the threads that do a piece of work together.
struct Worker {
    int thread;   ///< 0 is the caller's
    int threads;  ///< may be fewer than were asked for
    Barrier* barrier;

    /// Wait until every thread of the team is here; what they wrote before is visible after.
    void wait() const;
};

/// What a team runs. It must not throw.
using Work = void (*)(const Worker& worker, void* context);

/// Run `work` on up to `threads` threads, kMostThreads at most, and return when all of them are done.
///
/// They are those of `openmp`, if it is given: after work of its own an OpenMP runtime keeps its threads awake, and they
/// would hold the cores that others want. Else they are threads of this library, of which one team runs at a time: a second
/// caller waits for the first. With one thread, and inside a team, the work runs at once in the calling thread.
void run(int threads, const bk_openmp* openmp, Work work, void* context);

/// Ask for large pages: they spare the kernels many misses of the address cache. Pages that are in use stay as they are.
void use_large_pages(void* memory, int64_t bytes);

/// Memory that belongs to the calling thread until it ends or asks again; aligned to a cache line, contents undefined.
///
/// Returns a null pointer where there is not so much memory.
void* workspace(int64_t bytes);

}  // namespace bertkit
