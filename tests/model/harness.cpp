#include "harness.h"

#include <algorithm>
#include <cmath>

namespace pipeinfer::test {

Chain::Chain(const ModelConfig& config, const Checkpoint& checkpoint, const std::vector<int>& ends,
             StageOptions options, const Backend& backend)
    : config_(config),
      options_(options),
      stream_(backend.device),
      sampled_(backend.device, options.max_tokens * sizeof(int32_t), "sampled"),
      top_(backend.device, options.max_tokens * kTopLogits * sizeof(TopLogit), "top") {
  options.last_layer = 0;
  options.cuda_graphs = !backend.reference;
  options.reference_kernels = backend.reference;
  for (int end : ends) {
    options.first_layer = options.last_layer;
    options.last_layer = end;
    stages_.push_back(std::make_unique<LlamaStage>(config, options, checkpoint, backend.device));
    const std::string graphs = stages_.back()->warm_up();
    if (backend.device.is_cuda() && !backend.reference)
      PI_CHECK(!graphs.starts_with("no CUDA graphs"), graphs);
    hidden_.emplace_back(backend.device, options.max_tokens * stages_.back()->hidden_bytes(),
                         "hidden states");
  }
  stages_.back()->on_logits([this](const StepPlan&, int first, int n, const float* logits, Stream& stream) {
    PI_CHECK(first == static_cast<int>(output_.logits.size()), "samples out of order");
    const std::vector<float> rows = to_host(logits, int64_t{n} * config_.vocab_size, stream);
    for (int i = 0; i < n; ++i)
      output_.logits.emplace_back(rows.begin() + i * config_.vocab_size,
                                  rows.begin() + (i + 1) * config_.vocab_size);
  });
}

StepOutput Chain::run(const StepPlan& plan) {
  plan.check({options_.slots, options_.blocks, options_.block_size, options_.context, config_.vocab_size, 1,
              options_.max_tokens});
  output_ = {};
  for (size_t i = 0; i < stages_.size(); ++i) {
    StepBuffers buffers;
    if (i > 0) buffers.hidden_in = hidden_[i - 1].data();
    if (i + 1 < stages_.size()) {
      buffers.hidden_out = hidden_[i].data();
    } else {
      buffers.sampled = sampled_.as<int32_t>();
      if (plan.want_top) buffers.top = top_.as<TopLogit>();
    }
    stages_[i]->prepare(plan, stream_);
    if (i == 0 && untaken_) stages_[0]->take_tokens(*untaken_, sampled_.as<int32_t>(), stream_);
    stages_[i]->run(plan, buffers, stream_);
  }
  const int n = plan.n_samples();
  if (stages_.size() > 1) untaken_ = plan;
  output_.tokens = to_host(sampled_.as<int32_t>(), n, stream_);
  if (plan.want_top) output_.top = to_host(top_.as<TopLogit>(), n * kTopLogits, stream_);
  return std::move(output_);
}

Planner::Planner(const StageOptions& options, uint64_t seed) : options_(options), free_(options.blocks) {
  for (int i = 0; i < options.blocks; ++i) free_[i] = i;
  std::mt19937_64 engine(seed);
  std::shuffle(free_.begin(), free_.end(), engine);
}

StepPlan Planner::start() {
  StepPlan plan;
  plan.step = step_++;
  return plan;
}

void Planner::open(StepPlan& plan, Live& sequence, int32_t slot) {
  sequence.slot = slot;
  plan.opened.push_back({slot, sequence.prompt_tokens, {}});
}

void Planner::close(StepPlan& plan, Live& sequence) {
  plan.closed.push_back(sequence.slot);
  free_.insert(free_.begin(), sequence.blocks.begin(), sequence.blocks.end());
  sequence.blocks.clear();
  sequence.slot = -1;
  sequence.done = 0;
}

void Planner::decode(StepPlan& plan, Live& sequence) {
  PI_CHECK(sequence.done + 1 == static_cast<int32_t>(sequence.tokens.size()));
  grant(plan, sequence, 1);
  plan.rows.push_back({sequence.slot, sequence.done, 1, kFromSlot, 1});
  sequence.done += 1;
}

void Planner::prefill(StepPlan& plan, Live& sequence, int32_t n, int32_t n_samples) {
  grant(plan, sequence, n);
  const auto first = static_cast<int32_t>(plan.tokens.size());
  plan.rows.push_back({sequence.slot, sequence.done, n, first, n_samples});
  const auto begin = sequence.tokens.begin() + sequence.done;
  plan.tokens.insert(plan.tokens.end(), begin, begin + n);
  sequence.done += n;
}

void Planner::grant(StepPlan& plan, Live& sequence, int32_t n) {
  BlockGrant grant{sequence.slot, {}};
  while (static_cast<int32_t>(sequence.blocks.size()) * options_.block_size < sequence.done + n) {
    PI_CHECK(!free_.empty(), "the test has too few blocks");
    grant.blocks.push_back(free_.back());
    sequence.blocks.push_back(free_.back());
    free_.pop_back();
  }
  if (!grant.blocks.empty()) plan.granted.push_back(std::move(grant));
}

std::vector<int32_t> random_tokens(std::mt19937& engine, int n, int vocab) {
  std::vector<int32_t> tokens(n);
  for (int32_t& token : tokens) token = std::uniform_int_distribution<int32_t>(0, vocab - 1)(engine);
  return tokens;
}

double relative_error(const std::vector<float>& a, const std::vector<double>& b) {
  double difference = 0, largest = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double gap = std::abs(a[i] - b[i]);
    difference = gap <= difference ? difference : gap;  // a NaN stays
    largest = std::max(largest, std::abs(b[i]));
  }
  return difference / largest;
}

}  // namespace pipeinfer::test
