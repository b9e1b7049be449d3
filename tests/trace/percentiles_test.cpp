#include "pipeinfer/trace/percentiles.h"

#include <gtest/gtest.h>

#include <random>

namespace pipeinfer {
namespace {

// By the definition: the smallest value that at least so many percent of the values do not exceed.
double brute_force(const std::vector<double>& values, int percent) {
  double best = 0;
  bool found = false;
  for (double candidate : values) {
    size_t n = 0;
    for (double value : values) n += value <= candidate ? 1 : 0;
    if (100 * n >= static_cast<size_t>(percent) * values.size() && (!found || candidate < best)) {
      best = candidate;
      found = true;
    }
  }
  return best;
}

TEST(Percentiles, AgreeWithTheDefinition) {
  std::mt19937 random(1);
  for (size_t n = 1; n <= 230; ++n) {
    std::vector<double> values(n);
    for (double& value : values) value = static_cast<double>(random() % 40) - 20;  // with repetitions
    const Percentiles p = percentiles(values);
    EXPECT_EQ(p.p50, brute_force(values, 50)) << n;
    EXPECT_EQ(p.p90, brute_force(values, 90)) << n;
    EXPECT_EQ(p.p99, brute_force(values, 99)) << n;
  }
}

TEST(Percentiles, OfNothingAreZero) {
  const Percentiles p = percentiles({});
  EXPECT_EQ(p.p50, 0);
  EXPECT_EQ(p.p90, 0);
  EXPECT_EQ(p.p99, 0);
}

}  // namespace
}  // namespace pipeinfer
