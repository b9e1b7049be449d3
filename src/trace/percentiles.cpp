#include "pipeinfer/trace/percentiles.h"

#include <algorithm>
#include <cstddef>

namespace pipeinfer {

Percentiles percentiles(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  // In whole numbers: 0.9 * 10 is not exactly 9.
  const auto at = [&](size_t percent) { return values[(percent * values.size() + 99) / 100 - 1]; };
  return {at(50), at(90), at(99)};
}

}  // namespace pipeinfer
