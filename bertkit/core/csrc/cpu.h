// What this build and this CPU can run; see bk_levels and bk_missing.
#pragma once

namespace bertkit {

/// Whether code for the level exists and can run here. False for numbers that are no level.
bool has_level(int level);

}  // namespace bertkit
