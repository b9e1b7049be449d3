// Host time, one clock for everything that is measured.
#pragma once

#include <string>

namespace pipeinfer {

/// Seconds on the monotonic clock, from an arbitrary start. Comparable inside one process only.
double now_s();

/// Local date and time, "2026-11-23 09:41:07".
std::string wall_clock_text();

}  // namespace pipeinfer
