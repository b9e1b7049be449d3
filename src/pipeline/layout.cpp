#include "pipeinfer/pipeline/layout.h"

#include "pipeinfer/base/bytes.h"

namespace pipeinfer {

namespace {
// Everything of SchedulerConfig but its list, in one order for both directions.
template <typename Field>
void each_field(SchedulerConfig& config, Field field) {
  field(config.lanes), field(config.batch_size), field(config.prefill_chunk), field(config.block_size);
  field(config.blocks), field(config.context), field(config.steps_ahead), field(config.want_top);
}
}  // namespace

PlanLimits Layout::limits() const {
  return {.slots = scheduler.batch_size,
          .blocks = scheduler.blocks,
          .block_size = scheduler.block_size,
          .context = scheduler.context,
          .vocab_size = vocab_size,
          .lanes = scheduler.lanes,
          .max_tokens = max_tokens()};
}

std::vector<std::byte> Layout::serialize() const {
  ByteWriter out;
  out.put_all(layers);
  out.put(vocab_size);
  SchedulerConfig config = scheduler;
  each_field(config, [&](auto& value) { out.put(value); });
  out.put_all(scheduler.eos_ids);
  return out.take();
}

Layout Layout::parse(std::span<const std::byte> bytes) {
  ByteReader in(bytes, "layout");
  Layout layout;
  layout.layers = in.get_all<int>();
  layout.vocab_size = in.get<int>();
  each_field(layout.scheduler,
             [&](auto& value) { value = in.get<std::remove_reference_t<decltype(value)>>(); });
  layout.scheduler.eos_ids = in.get_all<int32_t>();
  in.end();
  return layout;
}

}  // namespace pipeinfer
