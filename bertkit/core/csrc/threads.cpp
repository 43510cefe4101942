#include "threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "bertkit.h"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sched.h>
#include <sys/mman.h>
#endif

namespace bertkit {
namespace {

using Clock = std::chrono::steady_clock;
using Word = std::atomic<unsigned>;  // which may wrap around

// How long to wait awake. The others of a team are known to be at work, so they are worth a longer wait than a call that may
// never come. Who waits soon lets others have the core: the one that is waited for may need it.
constexpr std::chrono::microseconds kPatienceIdle{20}, kPatienceInTeam{200}, kSelfish{5};

int count_cores() {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
    return int(std::thread::hardware_concurrency());
}

std::chrono::microseconds patience_in_team(int threads) {
    static const int cores = count_cores();
    return threads <= cores ? kPatienceInTeam : std::chrono::microseconds{0};
}

void pause() {
#if defined(BERTKIT_X86)
    __builtin_ia32_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ volatile("yield");
#endif
}

// Wait until the word is no longer `old`: awake for a while, then asleep.
void wait_while(const Word& word, unsigned old, std::chrono::microseconds patience) {
    constexpr int kLooksPerClock = 32;
    const auto start = Clock::now();
    for (auto waited = Clock::duration::zero(); waited <= patience; waited = Clock::now() - start) {
        for (int look = 0; look < kLooksPerClock; ++look) {
            if (word.load(std::memory_order_acquire) != old) return;
            pause();
        }
        if (waited > kSelfish) std::this_thread::yield();
    }
    while (word.load(std::memory_order_acquire) == old) word.wait(old, std::memory_order_acquire);
}

thread_local bool in_team = false;

}  // namespace

class Barrier {
public:
    void wait(int threads) {
        const unsigned round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < unsigned(threads)) {
            wait_while(round_, round, patience_in_team(threads));
            return;
        }
        arrived_.store(0, std::memory_order_relaxed);
        round_.store(round + 1, std::memory_order_release);
        round_.notify_all();
    }

private:
    alignas(64) Word arrived_{0};
    alignas(64) Word round_{0};
};

void Worker::wait() const {
    if (threads > 1) barrier->wait(threads);
}

namespace {

int process_id() {
#if defined(__unix__) || defined(__APPLE__)
    return getpid();
#else
    return 0;
#endif
}

// The threads of one process. A pool is never destroyed: its threads sleep until the process ends.
class Pool {
public:
    explicit Pool(int process) : process_(process) {}

    int process() const { return process_; }

    void run(int threads, Work work, void* context) {
        const std::lock_guard<std::mutex> turn(turn_);
        threads = 1 + start(threads - 1);
        Barrier barrier;
        work_ = work;
        context_ = context;
        team_ = {0, threads, &barrier};
        left_.store(unsigned(threads - 1), std::memory_order_relaxed);
        for (int seat = 0; seat < threads - 1; ++seat) {
            seats_[seat]->calls.fetch_add(1, std::memory_order_release);
            seats_[seat]->calls.notify_one();
        }
        in_team = true;
        work(team_, context);
        in_team = false;
        const auto patience = patience_in_team(threads);
        for (unsigned left; (left = left_.load(std::memory_order_acquire)) != 0;) wait_while(left_, left, patience);
    }

private:
    // A thread waits at its own word, so that those a team does not need sleep on, and see nothing of it.
    struct alignas(64) Seat {
        Word calls{0};
    };

    // Have `count` threads; the number there is, where the system gives no more.
    int start(int count) {
        try {
            while (int(seats_.size()) < count) {
                auto seat = std::make_unique<Seat>();
                seats_.reserve(seats_.size() + 1);
                std::thread(&Pool::serve, this, seat.get(), int(seats_.size()) + 1).detach();
                seats_.push_back(std::move(seat));
            }
        } catch (...) {  // a limit of threads or memory: fewer threads give the same results
        }
        return std::min(count, int(seats_.size()));
    }

    void serve(Seat* seat, int thread) {
        in_team = true;
        for (unsigned calls = 0;; ++calls) {
            wait_while(seat->calls, calls, kPatienceIdle);
            work_({thread, team_.threads, team_.barrier}, context_);
            if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_one();
        }
    }

    const int process_;
    std::mutex turn_;
    std::vector<std::unique_ptr<Seat>> seats_;
    Work work_ = nullptr;
    void* context_ = nullptr;
    Worker team_{};
    alignas(64) Word left_{0};
};

// The threads of a forked process are not those of its parent, whose pool may even have been locked: it gets a new one.
Pool* pool_of_process() {
    static std::atomic<Pool*> current{nullptr};
    const int process = process_id();
    Pool* pool = current.load(std::memory_order_acquire);
    while (pool == nullptr || pool->process() != process) {
        auto fresh = std::unique_ptr<Pool>(new (std::nothrow) Pool(process));
        if (fresh == nullptr) return nullptr;
        if (current.compare_exchange_strong(pool, fresh.get())) return fresh.release();
    }
    return pool;
}

// What the threads of an OpenMP runtime are told. How many there are, they alone know.
struct Job {
    const bk_openmp& openmp;
    Work work;
    void* context;
    Barrier barrier{};

    static void enter(void* job) { static_cast<Job*>(job)->run(); }

    void run() {
        in_team = true;
        work({openmp.thread(), openmp.threads(), &barrier}, context);
        in_team = false;
    }
};

// A forked process has the runtime of its parent, but not its threads, for which that would wait forever.
const int process_of_library = process_id();
bool is_forked() { return process_id() != process_of_library; }

}  // namespace

void run(int threads, const bk_openmp* openmp, Work work, void* context) {
    threads = std::clamp(threads, 1, kMostThreads);
    if (threads == 1 || in_team) {
        work({0, 1, nullptr}, context);
    } else if (openmp != nullptr && !is_forked()) {
        Job job{*openmp, work, context};
        openmp->parallel(&Job::enter, &job, unsigned(threads), 0);
    } else if (Pool* pool = pool_of_process()) {
        pool->run(threads, work, context);
    } else {
        work({0, 1, nullptr}, context);
    }
}

namespace {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kHugePage = 2 << 20;

}  // namespace

void use_large_pages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE)), begin = (uintptr_t(memory) + page - 1) / page * page;
    const uintptr_t end = uintptr_t(memory) + uintptr_t(bytes);
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

namespace {

struct Memory {
    void* data = nullptr;
    int64_t bytes = 0;
    int64_t alignment = kCacheLine;

    void release() {
        if (data != nullptr) ::operator delete(data, std::align_val_t(alignment));
        data = nullptr;
        bytes = 0;
    }

    bool reserve(int64_t wanted) {
        release();
        const bool large = wanted >= kHugePage;
        alignment = large ? kHugePage : kCacheLine;
        wanted = (wanted + alignment - 1) / alignment * alignment;
        data = ::operator new(std::size_t(wanted), std::align_val_t(alignment), std::nothrow);
        if (data == nullptr) return false;
        bytes = wanted;
        if (large) use_large_pages(data, bytes);
        return true;
    }

    ~Memory() { release(); }
};

}  // namespace

void* workspace(int64_t bytes) {
    static thread_local Memory memory;
    if (bytes < 0 || (bytes > memory.bytes && !memory.reserve(bytes))) return nullptr;
    return memory.data;
}

}  // namespace bertkit
