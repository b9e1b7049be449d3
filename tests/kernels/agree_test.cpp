// Only on GPUs: the GPU draws the tokens that the CPU draws.
#include <algorithm>

#include "harness.h"

namespace pipeinfer::kernels {
namespace {

class Agree : public KernelTest {
 protected:
  /// One call of sample on `device`, a slot a row, some tokens seen before.
  std::vector<int32_t> draw(Device device, const std::vector<float>& logits, int vocab,
                            const std::vector<SamplingParams>& params, const std::vector<uint32_t>& seen) {
    Stream stream(device);
    const auto on_device = [&](const auto& values) {
      DeviceBuffer buffer(device, values.size() * sizeof(values[0]), "test array");
      copy_async(buffer.data(), values.data(), buffer.bytes(), stream);
      return buffer;
    };
    std::vector<int32_t> slot(params.size()), out(params.size());
    for (size_t i = 0; i < slot.size(); ++i) slot[i] = static_cast<int32_t>(i);
    const DeviceBuffer rows = on_device(logits), slots = on_device(slot), sampling = on_device(params);
    const DeviceBuffer bits = on_device(seen), tokens = on_device(out);
    SlotTable table;
    table.sampling = sampling.as<SamplingParams>();
    table.seen = bits.as<uint32_t>();
    table.seen_words = static_cast<int>(seen.size() / params.size());
    sample(tokens.as<int32_t>(), rows.as<float>(), slots.as<int32_t>(), slots.as<int32_t>(), table,
           static_cast<int>(slot.size()), vocab, stream);
    copy_async(out.data(), tokens.data(), tokens.bytes(), stream);
    Event done(device);
    done.record(stream);
    EXPECT_TRUE(wait_until(done, 60));
    return out;
  }
};

TEST_F(Agree, DrawsOfCpuAndGpuAreTheSame) {
  for (int vocab : {50, 1000, 32000, 151936}) {
    const int n = 64;
    std::vector<SamplingParams> params(n);
    for (int i = 0; i < n; ++i) {
      params[i].temperature = 0.25f * static_cast<float>(integer(0, 8));
      params[i].top_k = integer(0, 1) ? integer(1, 2 * std::min(vocab, 500)) : 0;
      params[i].top_p = integer(0, 1) ? 0.01f * static_cast<float>(integer(1, 99)) : 1;
      params[i].repetition_penalty = integer(0, 1) ? 1.5f : 1;
      params[i].seed = rng_();
      params[i].id_hash = rng_() * uint64_t{0x9e3779b97f4a7c15};
    }
    std::vector<float> logits = normal(size_t(n) * vocab, 3);
    for (float& logit : logits) logit = std::round(logit * 64) / 64;  // with ties
    std::vector<uint32_t> seen(size_t(n) * ((vocab + 31) / 32));
    for (uint32_t& word : seen) word = rng_() & rng_();
    EXPECT_EQ(draw(kDevice, logits, vocab, params, seen), draw(Device{}, logits, vocab, params, seen))
        << vocab;
  }
}

}  // namespace
}  // namespace pipeinfer::kernels
