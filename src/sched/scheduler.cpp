#include "pipeinfer/sched/scheduler.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "pipeinfer/base/check.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/sched/id_allocator.h"
#include "served.h"

namespace pipeinfer {

namespace {

// What a step in flight will bring, in row order.
struct Awaited {
  Served* served;
  int32_t n_samples;
};

struct StepInFlight {
  uint64_t step;
  int32_t n_samples;
  std::vector<Awaited> rows;
};

struct Lane {
  std::vector<std::unique_ptr<Served>> sequences;  // oldest first
  std::deque<StepInFlight> steps;                  // oldest first

  // Sequences that still want rows: who only waits for the last ones in flight gives the lane nothing to do.
  auto busy() const {
    return std::count_if(sequences.begin(), sequences.end(), [](const auto& served) {
      return served->wants_prefill() || served->wants_decode();
    });
  }
};

int32_t blocks_for(int32_t tokens, int32_t block_size) { return (tokens + block_size - 1) / block_size; }

}  // namespace

struct Scheduler::Impl {
  SchedulerConfig config;
  SchedulerEvents& events;
  IdAllocator blocks;
  IdAllocator slots;
  std::vector<Lane> lanes;
  std::deque<std::unique_ptr<Served>> waiting;  // oldest first; preempted ones are older than all others
  std::vector<int32_t> closed;                  // slots whose end no plan has told yet
  bool draining = false;
  uint64_t submitted = 0;
  uint64_t steps = 0;
  int64_t preemptions = 0;

  Impl(const SchedulerConfig& config_, SchedulerEvents& events_)
      : config(config_),
        events(events_),
        blocks(config_.blocks),
        slots(config_.batch_size),
        lanes(static_cast<size_t>(config_.lanes)) {}

  Lane& lane_at(int lane) {
    PI_CHECK(lane >= 0 && lane < config.lanes, "lane ", lane, " of ", config.lanes);
    return lanes[static_cast<size_t>(lane)];
  }

  bool admits(const Served& next) const { return next.admitted_once || !draining; }

  // Sequences with a slot for which `property` holds.
  template <typename Property>
  int count(Property property) const {
    int n = 0;
    for (const Lane& lane : lanes) {
      for (const auto& served : lane.sequences) n += property(*served) ? 1 : 0;
    }
    return n;
  }

  int running() const {
    return count([](const Served&) { return true; });
  }

  void admit() {
    // A victim on its way out is older than all that wait, and holds blocks: it comes first.
    if (count([](const Served& served) { return served.state == Served::State::evicted; }) > 0) return;
    while (!waiting.empty() && admits(*waiting.front()) && slots.available() > 0) {
      const int32_t need = blocks_for(waiting.front()->tokens_at_admission(), config.block_size);
      if (blocks.available() < need + running()) return;
      std::unique_ptr<Served> served = std::move(waiting.front());
      waiting.pop_front();
      served->reset();
      served->admitted_once = true;
      served->slot = slots.take();
      for (int32_t i = 0; i < need; ++i) served->blocks.push_back(blocks.take());
      std::min_element(lanes.begin(), lanes.end(), [](const Lane& a, const Lane& b) {
        return a.busy() < b.busy();
      })->sequences.push_back(std::move(served));
    }
  }

  // Whether the position that comes next has a block, taking or making free one where it needs to.
  bool has_block(Served& served) {
    const int32_t need = blocks_for(served.planned + 1, config.block_size);
    if (static_cast<int32_t>(served.blocks.size()) >= need) return true;
    // Where a sequence is on its way out its blocks come soon: no other is evicted for now.
    const bool soon = count([](const Served& other) { return other.leaving(); }) > 0;
    if (blocks.available() == 0 && !soon && evict_youngest() == &served) return false;
    if (blocks.available() == 0) return false;
    served.blocks.push_back(blocks.take());
    return true;
  }

  // Returns the victim for comparison only: it may be waiting again.
  const Served* evict_youngest() {
    Served* victim = nullptr;
    for (const Lane& lane : lanes) {
      for (const auto& served : lane.sequences) {
        if (!served->leaving() && (!victim || served->age > victim->age)) victim = served.get();
      }
    }
    PI_CHECK(victim && count([](const Served& served) { return !served.leaving(); }) > 1,
             "one sequence alone needs more than all ", config.blocks, " blocks");
    ++preemptions;
    ++victim->sequence.preemptions;
    victim->state = Served::State::evicted;
    if (victim->in_flight == 0) release(*victim);
    return victim;
  }

  // Gives back slot and blocks; a victim waits again, in front: no older one does.
  void release(Served& served) {
    for (int32_t block : served.blocks) blocks.release(block);
    slots.release(served.slot);
    if (served.opened) closed.push_back(served.slot);
    std::unique_ptr<Served> owned;
    for (Lane& lane : lanes) {
      const auto at = std::find_if(lane.sequences.begin(), lane.sequences.end(),
                                   [&](const auto& other) { return other.get() == &served; });
      if (at == lane.sequences.end()) continue;
      owned = std::move(*at);
      lane.sequences.erase(at);
      break;
    }
    if (owned->state == Served::State::evicted) waiting.push_front(std::move(owned));
  }

  std::optional<StepPlan> plan(int lane_index) {
    Lane& lane = lane_at(lane_index);
    if (static_cast<int>(lane.steps.size()) >= config.steps_ahead) return std::nullopt;

    StepPlan plan;
    StepInFlight step;
    const auto add_row = [&](Served& served, int32_t budget) {
      const StepRow row = served.add_row(plan, budget);
      step.rows.push_back({&served, row.n_samples});
      return row.n_tokens;
    };
    // Prompts that were begun go first: the sooner all decode, the more tokens a reading of the weights gives.
    const bool decode = std::none_of(lane.sequences.begin(), lane.sequences.end(),
                                     [](const auto& served) { return served->wants_prefill(); });
    // A victim is the youngest of all, so it has no row yet: it leaves `sequences` behind the current place,
    // or at it.
    for (size_t i = 0; decode && i < lane.sequences.size(); ++i) {
      Served& served = *lane.sequences[i];
      if (served.wants_decode() && has_block(served)) add_row(served, 1);
    }
    admit();
    int32_t budget = config.prefill_chunk;
    for (const auto& served : lane.sequences) {
      if (budget > 0 && served->wants_prefill()) budget -= add_row(*served, budget);
    }
    if (plan.rows.empty()) return std::nullopt;

    plan.step = steps++;
    plan.lane = lane_index;
    plan.want_top = config.want_top;
    plan.closed = std::exchange(closed, {});
    step.step = plan.step;
    step.n_samples = plan.n_samples();
    lane.steps.push_back(std::move(step));
    return plan;
  }

  void commit(const StepResult& result, double now_s) {
    if (result.lane < 0 || result.lane >= config.lanes) {
      runtime_failure(cat("result of step ", result.step, " names lane ", result.lane, " of ", config.lanes));
    }
    std::deque<StepInFlight>& in_flight = lane_at(result.lane).steps;
    if (in_flight.empty()) {
      runtime_failure(cat("result of step ", result.step, " came for lane ", result.lane,
                          ", which has no step in flight"));
    }
    const auto n_samples = static_cast<size_t>(in_flight.front().n_samples);
    if (result.step != in_flight.front().step || result.tokens.size() != n_samples ||
        result.top.size() != (config.want_top ? n_samples * kTopLogits : 0)) {
      runtime_failure(cat("result of lane ", result.lane, " fits no plan: expected step ",
                          in_flight.front().step, " with ", n_samples, " tokens",
                          config.want_top ? " and their top logits" : "", ", found step ", result.step,
                          " with ", result.tokens.size(), " tokens and ", result.top.size(), " top logits"));
    }
    const StepInFlight step = std::move(in_flight.front());
    in_flight.pop_front();
    size_t at = 0;
    for (const auto& [served, samples] : step.rows) {
      const auto n = static_cast<size_t>(samples);
      --served->in_flight;
      if (n > 0 && served->state != Served::State::ended) {
        const auto top =
            std::span(result.top)
                .subspan(config.want_top ? at * kTopLogits : 0, config.want_top ? n * kTopLogits : 0);
        take(*served, std::span(result.tokens).subspan(at, n), top, now_s);
      }
      at += n;
      if (served->leaving() && served->in_flight == 0) release(*served);
    }
  }

  // EOS rules before stop, stop before length.
  void take(Served& served, std::span<const int32_t> tokens, std::span<const TopLogit> top, double now_s) {
    Sequence& sequence = served.sequence;
    if (sequence.first_token_s == 0) sequence.first_token_s = now_s;
    if (served.take_samples(tokens, top)) {
      const Request& request = sequence.request;
      const bool stop = events.on_token(sequence);
      const bool eos =
          std::find(config.eos_ids.begin(), config.eos_ids.end(), tokens[0]) != config.eos_ids.end();
      if (eos && !request.ignore_eos) {
        sequence.finish = FinishReason::eos;
      } else if (stop) {
        sequence.finish = FinishReason::stop;
      } else if (sequence.new_tokens() == request.max_new_tokens) {
        sequence.finish = FinishReason::length;
      }
    }
    if (sequence.finish == FinishReason::none) return;
    served.state = Served::State::ended;
    sequence.finished_s = now_s;
    events.on_finish(sequence);
  }

  void cancel() {
    waiting.clear();
    for (Lane& lane : lanes) {
      for (size_t i = lane.sequences.size(); i-- > 0;) {
        Served& served = *lane.sequences[i];
        served.state = Served::State::ended;
        if (served.in_flight == 0) release(served);
      }
    }
  }
};

Scheduler::Scheduler(const SchedulerConfig& config, SchedulerEvents& events) {
  PI_CHECK(config.lanes > 0 && config.batch_size > 0 && config.prefill_chunk > 0 && config.block_size > 0 &&
               config.blocks > 0 && config.context > 0 && config.steps_ahead > 0,
           "every size of SchedulerConfig is at least 1");
  impl_ = std::make_unique<Impl>(config, events);
}

Scheduler::~Scheduler() = default;

std::optional<std::string> Scheduler::submit(Request request, double now_s) {
  const auto prompt = static_cast<int32_t>(request.prompt_tokens.size());
  const bool score = request.max_new_tokens == 0;
  PI_CHECK(prompt > 0 && request.max_new_tokens >= 0, "request ", request.id);
  PI_CHECK(score ? request.score_from >= 0 && request.score_from < prompt : request.score_from < 0,
           "request ", request.id, " generates ", request.max_new_tokens, " tokens and scores from ",
           request.score_from);
  const SchedulerConfig& config = impl_->config;
  if (prompt > config.context - request.max_new_tokens) {
    return cat(prompt, " prompt tokens and ", request.max_new_tokens, " new ones exceed the context of ",
               config.context);
  }
  auto served = std::make_unique<Served>();
  served->sequence.tokens = request.prompt_tokens;
  served->sequence.request = std::move(request);
  served->sequence.submitted_s = now_s;
  const int32_t need = blocks_for(served->row_limit(), config.block_size);
  if (need > config.blocks) {
    return cat(prompt, " prompt tokens and ", served->sequence.request.max_new_tokens, " new ones need ",
               need, " KV blocks, the pool has ", config.blocks);
  }
  served->age = impl_->submitted++;
  impl_->waiting.push_back(std::move(served));
  return std::nullopt;
}

std::optional<StepPlan> Scheduler::plan(int lane) { return impl_->plan(lane); }

void Scheduler::commit(const StepResult& result, double now_s) { impl_->commit(result, now_s); }

void Scheduler::drain() { impl_->draining = true; }

void Scheduler::cancel() { impl_->cancel(); }

bool Scheduler::idle() const {
  const Impl& impl = *impl_;
  return impl.running() == 0 && (impl.waiting.empty() || !impl.admits(*impl.waiting.front()));
}

int Scheduler::in_flight(int lane) const { return static_cast<int>(impl_->lane_at(lane).steps.size()); }

SchedulerCounters Scheduler::counters() const {
  const Impl& impl = *impl_;
  return {static_cast<int>(impl.waiting.size()), impl.running(), impl.blocks.available(), impl.preemptions,
          static_cast<int64_t>(impl.steps)};
}

}  // namespace pipeinfer
