#include "pipeinfer/pipeline/partition.h"

#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "pipeinfer/base/error.h"

namespace pipeinfer {
namespace {

// OpenLLaMA-3B in fp16: the head costs 0.83 of a layer.
PartitionModel openllama_3b() {
  const int64_t h = 3200, i = 8640, v = 32000;
  return {.n_layers = 26,
          .layer_bytes = 2 * (4 * h * h + 3 * h * i + 2 * h),
          .head_bytes = 2 * (v * h + h),
          .embed_bytes = 2 * v * h};
}

std::vector<int64_t> plenty(int n) { return std::vector<int64_t>(n, int64_t{1} << 40); }

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::usage);
    return e.what();
  }
  return "nothing was thrown";
}

TEST(Partition, OpenLlama3B) {
  const auto model = openllama_3b();
  EXPECT_EQ(auto_partition(model, plenty(1)), (StageLayers{0, 26}));
  EXPECT_EQ(auto_partition(model, plenty(2)), (StageLayers{0, 13, 26}));
  EXPECT_EQ(auto_partition(model, plenty(3)), (StageLayers{0, 9, 18, 26}));
  EXPECT_EQ(auto_partition(model, plenty(4)), (StageLayers{0, 7, 14, 20, 26}));
  EXPECT_NEAR(stage_cost(model, {0, 13, 26}, 1), 13.83, 0.005);
}

TEST(Partition, NoPartitionHasASmallerLargestStage) {
  std::mt19937 rng(3);
  for (int round = 0; round < 200; ++round) {
    const int n_layers = 1 + rng() % 9, n_stages = 1 + rng() % std::min(n_layers, 4);
    const PartitionModel model{.n_layers = n_layers,
                               .layer_bytes = 100,
                               .head_bytes = int64_t(rng() % 300),
                               .embed_bytes = int64_t(rng() % 300),
                               .tied = rng() % 2 == 0};
    std::vector<int64_t> capacity(n_stages);
    for (auto& bytes : capacity) bytes = 150 + rng() % 900;
    double least = 1e30;
    const std::function<void(StageLayers)> all = [&](StageLayers layers) {
      if (static_cast<int>(layers.size()) == n_stages) {
        layers.push_back(n_layers);
        double largest = 0;
        for (int s = 0; s < n_stages; ++s) {
          if (stage_weight_bytes(model, layers, s) > capacity[s]) return;
          largest = std::max(largest, stage_cost(model, layers, s));
        }
        least = std::min(least, largest);
        return;
      }
      for (int end = layers.back() + 1; end < n_layers; ++end) {
        auto longer = layers;
        longer.push_back(end);
        all(longer);
      }
    };
    all({0});
    if (least > 1e29) {
      EXPECT_NE(message_of([&] { auto_partition(model, capacity); }).find("does not fit"), std::string::npos);
      continue;
    }
    const auto found = auto_partition(model, capacity);
    ASSERT_EQ(static_cast<int>(found.size()), n_stages + 1);
    double largest = 0;
    for (int s = 0; s < n_stages; ++s) {
      EXPECT_LE(stage_weight_bytes(model, found, s), capacity[s]);
      largest = std::max(largest, stage_cost(model, found, s));
    }
    EXPECT_NEAR(largest, least, 1e-6);
  }
}

TEST(Partition, WhatDoesNotAddUpIsNamed) {
  EXPECT_EQ(explicit_partition({13, 13}, 26, 2), (StageLayers{0, 13, 26}));
  EXPECT_EQ(message_of([] {
              explicit_partition({13, 12}, 26, 2);
            }),
            "partition 13,12 adds up to 25 layers, the model has 26");
  EXPECT_EQ(message_of([] { explicit_partition({26}, 26, 2); }), "partition 26 has 1 stages, the run has 2");
  EXPECT_EQ(message_of([] {
              explicit_partition({26, 0}, 26, 2);
            }),
            "partition 26,0: every stage needs at least 1 layer");
  EXPECT_EQ(message_of([] { auto_partition(openllama_3b(), plenty(27)); }),
            "there are more ranks than layers: 27 pipeline stages for 26 layers");
}

}  // namespace
}  // namespace pipeinfer
