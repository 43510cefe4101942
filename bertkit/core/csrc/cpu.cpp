#include "cpu.h"

#include <cerrno>
#include <cstring>
#include <string>

#include "bertkit.h"

#if defined(BERTKIT_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace bertkit {
namespace {

// The levels that this build has code for, see CMakeLists.txt.
constexpr uint32_t kCompiled = 1u << BK_SCALAR
#if defined(BERTKIT_HAS_AVX2)
                               | 1u << BK_AVX2
#endif
#if defined(BERTKIT_HAS_AVXVNNI)
                               | 1u << BK_AVXVNNI
#endif
#if defined(BERTKIT_HAS_AVX512)
                               | 1u << BK_AVX512
#endif
#if defined(BERTKIT_HAS_AMX)
                               | 1u << BK_AMX
#endif
    ;

#if defined(BERTKIT_EMULATE_AMX)
constexpr bool kEmulatesAmx = true;
#else
constexpr bool kEmulatesAmx = false;
#endif

#if defined(BERTKIT_X86)

// The levels that need something, one bit each.
constexpr uint32_t kNeedTiles = 1u << BK_AMX;
constexpr uint32_t kNeedAvx512 = kNeedTiles | 1u << BK_AVX512;
constexpr uint32_t kNeedAvxVnni = 1u << BK_AVXVNNI;
constexpr uint32_t kNeedAvx2 = kNeedAvx512 | kNeedAvxVnni | 1u << BK_AVX2;

// The registers of CPUID that hold features.
enum Register { kLeaf1Ecx, kLeaf7Ebx, kLeaf7Ecx, kLeaf7Edx, kLeaf7Part1Eax, kRegisters };

// What the options of a level in CMakeLists.txt let the compiler use.
constexpr struct {
    uint32_t levels;
    const char* name;  // as Linux writes it in /proc/cpuinfo
    Register in;
    int bit;
} kFeatures[] = {
    {kNeedAvx2, "avx2", kLeaf7Ebx, 5},
    {kNeedAvx2, "fma", kLeaf1Ecx, 12},
    {kNeedAvxVnni, "avx_vnni", kLeaf7Part1Eax, 4},
    {kNeedAvx512, "avx512f", kLeaf7Ebx, 16},
    {kNeedAvx512, "avx512dq", kLeaf7Ebx, 17},
    {kNeedAvx512, "avx512bw", kLeaf7Ebx, 30},
    {kNeedAvx512, "avx512vl", kLeaf7Ebx, 31},
    {kNeedAvx512, "avx512_vnni", kLeaf7Ecx, 11},
    {kNeedTiles, "amx_tile", kLeaf7Edx, 24},
    {kNeedTiles, "amx_int8", kLeaf7Edx, 25},
};

// Registers that the system has to save when it switches threads: bits of XCR0.
constexpr struct {
    uint32_t levels;
    const char* name;
    unsigned bits;
} kStates[] = {{kNeedAvx2, "AVX registers", 0x6}, {kNeedAvx512, "AVX-512 registers", 0xe0}, {kNeedTiles, "AMX tiles", 0x60000}};

constexpr int kOsxsaveBit = 27;

unsigned saved_states(unsigned leaf1_ecx) {
    if (!(leaf1_ecx >> kOsxsaveBit & 1)) return 0;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

// Linux hands out tiles on request, once for all threads of a process. It refuses where a thread has too small a signal stack.
std::string refused_tiles() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) {
        return std::string("the system does not permit AMX tiles (") + std::strerror(errno) + ")";
    }
#endif
    return "";
}

std::string missing_on_cpu(int level) {
    unsigned eax, ebx, ecx, edx, registers[kRegisters] = {};
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx)) registers[kLeaf1Ecx] = ecx;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
        registers[kLeaf7Ebx] = ebx;
        registers[kLeaf7Ecx] = ecx;
        registers[kLeaf7Edx] = edx;
    }
    if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) registers[kLeaf7Part1Eax] = eax;
    std::string features, states;
    for (const auto& feature : kFeatures) {
        if (!(feature.levels >> level & 1) || registers[feature.in] >> feature.bit & 1) continue;
        features += (features.empty() ? "this CPU has no " : ", ") + std::string(feature.name);
    }
    if (!features.empty()) return features;
    const unsigned saved = saved_states(registers[kLeaf1Ecx]);
    for (const auto& state : kStates) {
        if (!(state.levels >> level & 1) || (saved & state.bits) == state.bits) continue;
        states += (states.empty() ? "the system does not save " : ", ") + std::string(state.name);
    }
    if (!states.empty()) return states;
    return level == BK_AMX ? refused_tiles() : "";
}

#else

std::string missing_on_cpu(int) { return ""; }

#endif

struct Missing {
    std::string of_level[BK_LEVELS];

    Missing() {
        for (int level = BK_SCALAR; level < BK_LEVELS; ++level) {
            const int needed = level == BK_AMX && kEmulatesAmx ? BK_AVX512 : level;
            of_level[level] = kCompiled >> level & 1 ? missing_on_cpu(needed) : "this build has no code for it";
        }
    }
};

const Missing& missing() {
    // Never destroyed: threads may still be at work when the process ends.
    static const Missing& found = *new Missing;
    return found;
}

}  // namespace

bool has_level(int level) { return 0 <= level && level < BK_LEVELS && missing().of_level[level].empty(); }

}  // namespace bertkit

uint32_t bk_levels(void) {
    uint32_t mask = 0;
    for (int level = BK_SCALAR; level < BK_LEVELS; ++level) mask |= uint32_t(bertkit::has_level(level)) << level;
    return mask;
}

const char* bk_missing(int level) {
    if (level < 0 || level >= BK_LEVELS) return "there is no such level";
    return bertkit::has_level(level) ? nullptr : bertkit::missing().of_level[level].c_str();
}
