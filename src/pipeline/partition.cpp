#include "pipeinfer/pipeline/partition.h"

#include <algorithm>
#include <limits>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer {

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

void check_stage_count(int n_stages, int n_layers) {
  if (n_stages > n_layers)
    usage_error(
        cat("there are more ranks than layers: ", n_stages, " pipeline stages for ", n_layers, " layers"));
}

// best[s][l]: least value of combining stages s.. over layers l.., by `combine(stage's own cost, rest)`.
template <typename Combine>
std::vector<std::vector<double>> best_of_rest(const PartitionModel& model,
                                              const std::vector<int64_t>& capacity, double most_cost,
                                              Combine combine) {
  const int n_stages = static_cast<int>(capacity.size());
  std::vector best(n_stages + 1, std::vector<double>(model.n_layers + 1, kNever));
  best[n_stages][model.n_layers] = 0;
  StageLayers layers(n_stages + 1);
  for (int s = n_stages - 1; s >= 0; --s)
    for (int l = 0; l < model.n_layers; ++l)
      for (int end = l + 1; end <= model.n_layers; ++end) {
        layers[s] = l;
        layers[s + 1] = end;
        const double cost = stage_cost(model, layers, s);
        if (cost > most_cost || stage_weight_bytes(model, layers, s) > capacity[s]) continue;
        best[s][l] = std::min(best[s][l], combine(cost, best[s + 1][end]));
      }
  return best;
}

}  // namespace

double stage_cost(const PartitionModel& model, const StageLayers& layers, int stage) {
  const bool last = stage + 2 == static_cast<int>(layers.size());
  const double head = static_cast<double>(model.head_bytes) / static_cast<double>(model.layer_bytes);
  return layers[stage + 1] - layers[stage] + (last ? head : 0);
}

int64_t stage_weight_bytes(const PartitionModel& model, const StageLayers& layers, int stage) {
  const bool first = stage == 0;
  const bool last = stage + 2 == static_cast<int>(layers.size());
  int64_t bytes = (layers[stage + 1] - layers[stage]) * model.layer_bytes;
  if (first) bytes += model.embed_bytes;
  if (last && !(first && model.tied)) bytes += model.head_bytes;
  return bytes;
}

StageLayers auto_partition(const PartitionModel& model, const std::vector<int64_t>& capacity) {
  const int n_stages = static_cast<int>(capacity.size());
  check_stage_count(n_stages, model.n_layers);
  const auto largest =
      best_of_rest(model, capacity, kNever, [](double own, double rest) { return std::max(own, rest); });
  if (largest[0][0] == kNever) {
    StageLayers all{0};
    for (int s = 1; s <= n_stages; ++s) all.push_back(s * model.n_layers / n_stages);
    int64_t most = 0;
    for (int s = 0; s < n_stages; ++s) most = std::max(most, stage_weight_bytes(model, all, s));
    usage_error(cat("the model does not fit: over ", n_stages, " ranks an even stage needs ", most >> 20,
                    " MiB of weights, the smallest rank has ",
                    *std::min_element(capacity.begin(), capacity.end()) >> 20, " MiB for them"));
  }
  // A hair above the least largest cost, so that rounding does not exclude it.
  const auto squares = best_of_rest(model, capacity, largest[0][0] * (1 + 1e-9),
                                    [](double own, double rest) { return own * own + rest; });
  StageLayers layers{0};
  StageLayers probe(n_stages + 1);
  for (int s = 0; s < n_stages; ++s) {
    const int from = layers.back();
    for (int end = model.n_layers; end > from; --end) {  // more layers on earlier stages first
      probe[s] = from;
      probe[s + 1] = end;
      const double cost = stage_cost(model, probe, s);
      if (cost > largest[0][0] * (1 + 1e-9) || stage_weight_bytes(model, probe, s) > capacity[s]) continue;
      if (cost * cost + squares[s + 1][end] > squares[s][from] * (1 + 1e-12)) continue;
      layers.push_back(end);
      break;
    }
  }
  return layers;
}

StageLayers explicit_partition(const std::vector<int64_t>& counts, int n_layers, int n_stages) {
  check_stage_count(n_stages, n_layers);
  std::string text;
  int64_t total = 0;
  for (int64_t count : counts) {
    text += cat(text.empty() ? "" : ",", count);
    total += count;
  }
  if (static_cast<int>(counts.size()) != n_stages)
    usage_error(cat("partition ", text, " has ", counts.size(), " stages, the run has ", n_stages));
  if (total != n_layers)
    usage_error(cat("partition ", text, " adds up to ", total, " layers, the model has ", n_layers));
  StageLayers layers{0};
  for (int64_t count : counts) {
    if (count < 1) usage_error(cat("partition ", text, ": every stage needs at least 1 layer"));
    layers.push_back(layers.back() + static_cast<int>(count));
  }
  return layers;
}

}  // namespace pipeinfer
