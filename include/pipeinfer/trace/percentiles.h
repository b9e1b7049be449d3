// Percentiles of what was measured.
#pragma once

#include <vector>

namespace pipeinfer {

/// By nearest rank: the smallest value that at least so many percent of the values do not exceed. 0 of no
/// values.
struct Percentiles {
  double p50 = 0, p90 = 0, p99 = 0;
};

Percentiles percentiles(std::vector<double> values);

}  // namespace pipeinfer
