#include <algorithm>
#include <array>
#include <numeric>

#include "harness.h"

namespace pipeinfer::kernels {
namespace {

struct Shape {
  DType dtype = DType::fp32;
  int head_dim = 100, n_heads = 4, n_kv_heads = 4, block_size = 16, slots = 5, context = 300;

  int max_blocks() const { return (context + block_size - 1) / block_size; }
  int blocks() const { return slots * max_blocks() + 3; }
  int row() const { return (n_heads + 2 * n_kv_heads) * head_dim; }
  size_t cache_elements() const { return size_t(blocks()) * 2 * n_kv_heads * block_size * head_dim; }
  std::string text() const {
    return cat(dtype_name(dtype), " head_dim ", head_dim, " heads ", n_heads, "/", n_kv_heads, " block_size ",
               block_size);
  }
};

/// Tokens of a step on the host and on the device. Every slot has all its blocks, in shuffled order.
struct Step {
  std::vector<int32_t> slot, position;
  int n_single = 0, n_padding = 0;

  void row(int s, int first, int n) {
    for (int i = 0; i < n; ++i) {
      slot.push_back(s);
      position.push_back(first + i);
    }
  }
  int size() const { return static_cast<int>(slot.size()); }
};

class Attention : public KernelTest {
 protected:
  void start(const Shape& shape) {
    shape_ = shape;
    std::vector<int32_t> ids(shape.blocks());
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), rng_);
    table_.assign(ids.begin(), ids.begin() + shape.slots * shape.max_blocks());
    prompt_tokens_.resize(shape.slots);
    for (int32_t& n : prompt_tokens_) n = integer(1, shape.context);
    device_table_ = std::make_unique<Array<int32_t>>(table_, stream_);
    device_prompts_ = std::make_unique<Array<int32_t>>(prompt_tokens_, stream_);
    cache_ = std::make_unique<Tensor>(shape.dtype, shape.cache_elements(), stream_);
  }

  KvLayer layer() const { return {cache_->data(), shape_.block_size, shape_.n_kv_heads, shape_.head_dim}; }

  /// Index into the cache of a token's K (kv = 0) or V (1), where it is kept in rows.
  size_t at(int slot, int position, int kv, int head) const {
    const size_t block = table_[slot * shape_.max_blocks() + position / shape_.block_size];
    return (((block * 2 + kv) * shape_.n_kv_heads + head) * shape_.block_size +
            position % shape_.block_size) *
           shape_.head_dim;
  }

  /// Where element `row_index` of a cache kept in rows is in the device's, see KvLayer.
  size_t in_octets(size_t row_index) const {
    if (!kDevice.is_cuda()) return row_index;
    const size_t d = shape_.head_dim, octet = row_index / (8 * d), row = row_index / d % 8,
                 dim = row_index % d;
    const size_t group = dim / 8 * 8, width = std::min<size_t>(8, d - group);
    return octet * 8 * d + group * 8 + row * width + dim % 8;
  }
  std::vector<float> read_cache() {
    const std::vector<float> values = cache_->read(stream_);
    std::vector<float> rows(values.size());
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = values[in_octets(i)];
    return rows;
  }
  void write_cache(const std::vector<float>& rows) {
    std::vector<float> values(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) values[in_octets(i)] = rows[i];
    cache_->write(values, stream_);
  }

  /// Calls f with the device's token table of a step, prepared.
  void with_tokens(const Step& step, const Rope& rope, auto&& f, void* workspace = nullptr) {
    Array<float> angle(size_t(step.size()) * shape_.head_dim);
    angle.poison(stream_);
    const Array<int32_t> slot(step.slot, stream_), position(step.position, stream_);
    TokenTable tokens;
    tokens.slot = slot.data();
    tokens.position = position.data();
    tokens.block_table = device_table_->data();
    tokens.prompt_tokens = device_prompts_->data();
    tokens.max_blocks = shape_.max_blocks();
    tokens.n_tokens = step.size();
    tokens.max_context = *std::max_element(step.position.begin(), step.position.end()) + 1;
    tokens.n_single = step.n_single;
    tokens.n_padding = step.n_padding;
    tokens.angle = angle.data();
    prepare_attention(angle.data(), workspace, layer(), tokens, rope, shape_.n_heads, stream_);
    f(tokens);
    angle.read(stream_);  // waits, and finds writes beyond the end
  }

  /// Rope, cache and attention of a step, for qkv given by (slot, position).
  std::vector<float> run(const Step& step, const std::vector<std::vector<float>>& qkv_of_slot,
                         const Rope& rope) {
    std::vector<float> rows;
    for (int t = 0; t < step.size(); ++t) {
      const auto begin = qkv_of_slot[step.slot[t]].begin() + step.position[t] * shape_.row();
      rows.insert(rows.end(), begin, begin + shape_.row());
    }
    Tensor qkv(shape_.dtype, rows, stream_);
    Tensor out(shape_.dtype, size_t(step.size()) * shape_.n_heads * shape_.head_dim, stream_);
    with_tokens(step, rope, [&](const TokenTable& tokens) {
      rope_and_cache(qkv.data(), layer(), tokens, shape_.n_heads, shape_.dtype, stream_);
      paged_attention(out.data(), qkv.data(), layer(), tokens, shape_.n_heads, 0.1f, shape_.dtype, stream_);
    });
    return out.read(stream_);
  }

  std::vector<float> inv_freq() const {
    std::vector<float> values(shape_.head_dim / 2);
    for (size_t i = 0; i < values.size(); ++i) values[i] = std::pow(10000.0, -2.0 * i / shape_.head_dim);
    return values;
  }

  /// Fills the positions that some token of the step may see, `own` ones of its own included or (0) not; the rest of
  /// the cache becomes NaN. Of neighbours of one slot the last counts.
  void fill(const Step& step, int own) {
    std::vector<float> filled(shape_.cache_elements(), NAN);
    for (int t = 0; t < step.size(); ++t) {
      if (t + 1 < step.size() && step.slot[t + 1] == step.slot[t]) continue;
      for (int p = 0; p < step.position[t] + own; ++p) {
        for (int kv : {0, 1}) {
          for (int h = 0; h < shape_.n_kv_heads; ++h) {
            const std::vector<float> values = normal(shape_.head_dim);
            std::copy(values.begin(), values.end(), filled.begin() + at(step.slot[t], p, kv, h));
          }
        }
      }
    }
    write_cache(filled);
  }

  /// The reference: attention of a step's `rows` of qkv, in double.
  std::vector<double> softmax(const Step& step, const std::vector<float>& rows,
                              const std::vector<float>& cache, float scale) const {
    const int d = shape_.head_dim, group = shape_.n_heads / shape_.n_kv_heads;
    std::vector<double> out;
    for (int t = 0; t < step.size(); ++t) {
      const int slot = step.slot[t], context = step.position[t] + 1;
      for (int h = 0; h < shape_.n_heads; ++h) {
        const float* q = rows.data() + size_t(t) * shape_.row() + h * d;
        std::vector<double> p(context), sum(d);
        for (int j = 0; j < context; ++j) {
          const float* k = cache.data() + at(slot, j, 0, h / group);
          p[j] = scale * std::inner_product(q, q + d, k, 0.0);
        }
        const double max = *std::max_element(p.begin(), p.end());
        double total = 0;
        for (double& x : p) total += x = std::exp(x - max);
        for (int j = 0; j < context; ++j) {
          const float* v = cache.data() + at(slot, j, 1, h / group);
          for (int i = 0; i < d; ++i) sum[i] += p[j] / total * v[i];
        }
        out.insert(out.end(), sum.begin(), sum.end());
      }
    }
    return out;
  }

  /// Decode rows first, then chunks, one of them longer than any tile; every slot at most once.
  Step mixed_step() {
    Step step;
    step.row(0, integer(0, shape_.context - 1), 1);
    step.row(1, integer(0, shape_.context - 1), 1);
    step.n_single = integer(0, 2);
    step.row(2, 0, integer(1, 40));
    step.row(4, integer(0, 100), integer(65, is_emulated() ? 100 : 200));
    step.row(3, shape_.context - 3, 3);
    return step;
  }

  Shape shape_;
  std::vector<int32_t> table_, prompt_tokens_;
  std::unique_ptr<Array<int32_t>> device_table_, device_prompts_;
  std::unique_ptr<Tensor> cache_;
};

const Shape kShapes[] = {
    {.head_dim = 64, .n_heads = 4, .n_kv_heads = 2, .block_size = 8},
    {.head_dim = 80, .n_heads = 3, .n_kv_heads = 3, .block_size = 16},
    {.head_dim = 96, .n_heads = 4, .n_kv_heads = 1, .block_size = 32},
    {.head_dim = 100, .n_heads = 5, .n_kv_heads = 5, .block_size = 16},
    {.head_dim = 100, .n_heads = 6, .n_kv_heads = 2, .block_size = 128},
    {.head_dim = 104, .n_heads = 2, .n_kv_heads = 1, .block_size = 64},
    {.head_dim = 128, .n_heads = 8, .n_kv_heads = 1, .block_size = 16},
    {.head_dim = 80, .n_heads = 5, .n_kv_heads = 1, .block_size = 24},
    {.head_dim = 100, .n_heads = 10, .n_kv_heads = 1, .block_size = 8},
    {.head_dim = 66, .n_heads = 2, .n_kv_heads = 2, .block_size = 8},
    {.head_dim = 256, .n_heads = 2, .n_kv_heads = 1, .block_size = 32},
    {.head_dim = 4, .n_heads = 1, .n_kv_heads = 1, .block_size = 8},
};

TEST_F(Attention, RopeRotatesAndFillsTheCacheAndNothingElse) {
  for (Shape shape : kShapes) {
    for (DType dtype : kDTypes) {
      for (bool dynamic : {false, true}) {
        shape.dtype = dtype;
        start(shape);
        const int d = shape.head_dim, half = d / 2, max_position = 128;
        const Step step = mixed_step();
        Tensor qkv = random(dtype, size_t(step.size()) * shape.row());
        const std::vector<float> before = qkv.read(stream_);
        const Array<float> frequencies(inv_freq(), stream_);
        Rope rope;
        rope.inv_freq = dynamic ? nullptr : frequencies.data();
        rope.dynamic = dynamic;
        rope.factor = 2;
        rope.max_position = max_position;
        with_tokens(step, rope, [&](const TokenTable& tokens) {
          rope_and_cache(qkv.data(), layer(), tokens, shape.n_heads, dtype, stream_);
        });

        std::vector<double> expected(before.begin(), before.end());
        std::vector<float> cache_expected(shape.cache_elements(), NAN);
        const std::vector<float> cache = read_cache();
        for (int t = 0; t < step.size(); ++t) {
          const int slot = step.slot[t], position = step.position[t];
          const double length = std::max({prompt_tokens_[slot], position + 1, max_position});
          const double base =
              dynamic ? 10000 * std::pow(2 * length / max_position - 1, double(d) / (d - 2)) : 10000;
          std::vector<double> rotated_k(shape.n_kv_heads * d);
          for (int h = 0; h < shape.n_heads + shape.n_kv_heads; ++h) {
            for (int i = 0; i < half; ++i) {
              const float frequency = static_cast<float>(std::pow(base, -2.0 * i / d));
              const double angle = static_cast<float>(position) * frequency;  // rounded as transformers does
              const size_t from = size_t(t) * shape.row() + h * d + i;
              const double a = before[from], b = before[from + half];
              double* to = h < shape.n_heads ? &expected[from] : &rotated_k[(h - shape.n_heads) * d + i];
              to[0] = a * std::cos(angle) - b * std::sin(angle);
              to[half] = b * std::cos(angle) + a * std::sin(angle);
            }
          }
          for (int h = 0; h < shape.n_kv_heads; ++h) {
            const size_t k = at(slot, position, 0, h), v = at(slot, position, 1, h);
            expect_near({cache.begin() + k, cache.begin() + k + d},
                        {rotated_k.begin() + h * d, rotated_k.begin() + (h + 1) * d}, tolerance(dtype), "K");
            const size_t from = size_t(t) * shape.row() + (shape.n_heads + shape.n_kv_heads + h) * d;
            for (int i = 0; i < d; ++i) {
              cache_expected[k + i] = cache[k + i];
              cache_expected[v + i] = before[from + i];
            }
          }
        }
        const std::vector<float> after = qkv.read(stream_);
        for (int t = 0; t < step.size(); ++t) {
          const size_t q = size_t(t) * shape.row(), n = shape.n_heads * d;
          expect_near({after.begin() + q, after.begin() + q + n},
                      {expected.begin() + q, expected.begin() + q + n}, tolerance(dtype),
                      cat("q of ", shape.text()));
        }
        for (size_t i = 0; i < cache.size(); ++i) {
          ASSERT_TRUE(cache[i] == cache_expected[i] ||
                      (std::isnan(cache[i]) && std::isnan(cache_expected[i])))
              << shape.text() << ": cache element " << i << " is " << cache[i];
        }
      }
    }
  }
}

TEST_F(Attention, EqualsTheSoftmaxInDouble) {
  for (Shape shape : kShapes) {
    for (DType dtype : kDTypes) {
      shape.dtype = dtype;
      start(shape);
      const int d = shape.head_dim;
      const Step step = mixed_step();
      const float scale = 1 / std::sqrt(static_cast<float>(d));
      fill(step, 1);
      const std::vector<float> cache = read_cache();
      // Scores near each other, or so far apart that the largest so far is passed again and again
      const float sigma = dtype == DType::fp32 || integer(0, 1) ? 2 : 20;
      const Tensor qkv = random(dtype, size_t(step.size()) * shape.row(), sigma);
      const std::vector<float> rows = qkv.read(stream_);
      const std::vector<double> expected = softmax(step, rows, cache, scale);
      const Rope rope{.dynamic = true, .max_position = 128};  // not read
      for (bool reference : {false, true}) {
        Tensor out(dtype, size_t(step.size()) * shape.n_heads * d, stream_);
        with_tokens(step, rope, [&](TokenTable tokens) {
          tokens.reference = reference;
          paged_attention(out.data(), qkv.data(), layer(), tokens, shape.n_heads, scale, dtype, stream_);
        });
        // Tensor cores take the probabilities in dtype, so they are rounded too.
        expect_near(out.read(stream_), expected, 2 * tolerance(dtype), shape.text());
      }
    }
  }
}

/// Steps in a row, each a token further, with one workspace: as rope_and_cache, and attention in double over what
/// that left in the cache. Rows behind n_single are not touched.
TEST_F(Attention, DecodeEqualsRopeAndSoftmaxInDouble) {
  int case_number = 0;
  for (Shape shape : kShapes) {
    for (DType dtype : kDTypes) {
      ++case_number;
      // Few tokens, whose contexts are cut into pieces; more that are dealt out evenly, on GPUs of any size; and so many of
      // one length that each warp takes whole items, or halves or quarters
      const int many = is_emulated() ? 19 : 73, group = shape.n_heads / shape.n_kv_heads;
      const int items = shape.n_kv_heads * ((group + 7) / 8), units = device_info(kDevice).multiprocessors;
      const int kind = case_number % 10;
      const bool even = kind >= 3, long_even = kind == 9;
      const int of_one_length[] = {units * 8,  units * 8 - 1,  units * 2 - 1, units * 6,
                                   units * 12, units * 12 - 1, units - 1};  // items
      const int n = even ? std::max(of_one_length[kind - 3] / items, 1) : std::array{1, 6, many}[kind];
      const int padding = even ? 0 : integer(0, 2);
      shape.dtype = dtype;
      // On a GPU, where there are many, as short as shows the same
      const int most = is_emulated() ? 600 : 1100, evenly = is_emulated() ? 60 : 28;
      const int quartered = is_emulated() ? 600 : 280;
      shape.context = kind < 2 ? most : kind == 2 ? 400 : long_even ? quartered : evenly;
      shape.slots = n + 2;
      start(shape);
      const int d = shape.head_dim, null_slot = n, other_slot = n + 1;
      const float scale = 1 / std::sqrt(static_cast<float>(d));
      const Array<float> frequencies(inv_freq(), stream_);
      Rope rope;
      rope.inv_freq = frequencies.data();
      rope.dynamic = case_number % 5 == 0;
      rope.max_position = 128;
      rope.factor = 2;
      DeviceBuffer workspace(kDevice, decode_workspace_bytes(shape.n_heads, shape.n_kv_heads, d, kDevice) + 1,
                             "workspace");
      fill_async(workspace.data(), 0, workspace.bytes(), stream_);

      Step step;  // contexts on both sides of the kernel's tiles and splits
      const auto position = [&](int slot) {
        if (even) return shape.context - integer(10, 14);
        return integer(0, kind == 2 && slot % 8 > 0 ? 40 : shape.context - 4);
      };
      for (int slot = 0; slot < n; ++slot) step.row(slot, position(slot), 1);
      if (kind == 1 || kind == 2) {
        step.position[0] = 0;
        step.position[1] = 8 * integer(1, shape.context / 8 - 1) - 2;
      }
      if (kind == 1) step.position[2] = 256 * integer(1, shape.context / 256) - 2;
      for (int i = 0; i < padding; ++i) step.row(null_slot, 0, 1);
      step.row(other_slot, 3, 2);  // not to be touched
      step.n_single = n + padding;
      step.n_padding = padding * integer(0, 1);
      fill(step, 0);
      for (int round = 0; round < (even ? 1 : 3); ++round) {
        const std::vector<float> before = read_cache();
        const std::vector<float> values = normal(size_t(step.size()) * shape.row());
        Tensor rotated(dtype, values, stream_), qkv(dtype, values, stream_);
        Tensor out(dtype, size_t(step.size()) * shape.n_heads * d, stream_);
        with_tokens(step, rope, [&](TokenTable tokens) {
          TokenTable single = tokens;
          single.n_tokens = tokens.n_single;
          rope_and_cache(rotated.data(), layer(), single, shape.n_heads, dtype, stream_);
        });
        const std::vector<float> expected_cache = read_cache();
        write_cache(before);
        with_tokens(
            step, rope,
            [&](TokenTable tokens) {
              tokens.reference = round == 1;
              decode_attention(out.data(), qkv.data(), layer(), tokens, shape.n_heads, scale,
                               workspace.data(), dtype, stream_);
            },
            workspace.data());

        const std::vector<float> cache = read_cache();
        const size_t null_block = table_[null_slot * shape.max_blocks()];
        const size_t block = cache.size() / shape.blocks();
        for (size_t i = 0; i < cache.size(); ++i) {
          if (i / block == null_block) continue;  // written by several rows
          ASSERT_TRUE(std::abs(cache[i] - expected_cache[i]) <=
                          2 * tolerance(dtype) * std::max(1.f, std::abs(expected_cache[i])) ||
                      (std::isnan(cache[i]) && std::isnan(expected_cache[i])))
              << shape.text() << ": cache element " << i << " is " << cache[i] << ", expected "
              << expected_cache[i];
        }
        const std::vector<float> got = out.read(stream_);
        const size_t width = size_t(shape.n_heads) * d, served = n * width;
        Step real = step;
        real.slot.resize(n);
        real.position.resize(n);
        // Within what a rounding of the rotated q and k that goes the other way makes of a score
        expect_near({got.begin(), got.begin() + served}, softmax(real, rotated.read(stream_), cache, scale),
                    2 * tolerance(dtype), shape.text());
        for (size_t i = step.n_single * width; i < got.size(); ++i) ASSERT_TRUE(std::isnan(got[i])) << i;
        for (int t = 0; t < n; ++t) ++step.position[t];
      }
    }
  }
}

TEST_F(Attention, ChunksEqualOneShot) {
  for (DType dtype : kDTypes) {
    for (int block_size : {8, 16, 128}) {
      Shape shape{.dtype = dtype, .head_dim = 100, .n_heads = 4, .n_kv_heads = 2, .block_size = block_size};
      start(shape);
      const Array<float> frequencies(inv_freq(), stream_);
      Rope rope;
      rope.inv_freq = frequencies.data();
      std::vector<std::vector<float>> qkv(shape.slots);
      for (std::vector<float>& rows : qkv) rows = normal(shape.context * shape.row());

      const int n = is_emulated() ? 150 : 250, row = shape.n_heads * shape.head_dim;
      Step whole;
      whole.row(2, 0, n);
      const std::vector<float> one_shot = run(whole, qkv, rope);

      start(shape);  // other blocks, poisoned again
      std::vector<float> chunked;
      for (int done = 0; done < n;) {
        const int take = std::min(integer(0, 1) ? 1 : integer(2, 90), n - done);
        Step step;  // between rows of other slots, whose caches hold NaN: they must not matter
        step.row(0, done, 1);
        if (take == 1) step.row(2, done, 1);
        step.n_single = step.size();
        if (take > 1) {
          step.row(1, done, 2);
          step.row(2, done, take);
        }
        const std::vector<float> out = run(step, qkv, rope);
        const int first =
            static_cast<int>(std::find(step.slot.begin(), step.slot.end(), 2) - step.slot.begin());
        chunked.insert(chunked.end(), out.begin() + first * row, out.begin() + (first + take) * row);
        done += take;
      }
      if (kDevice.is_cuda()) {
        expect_near(chunked, {one_shot.begin(), one_shot.end()}, 2 * tolerance(dtype), shape.text());
      } else {
        EXPECT_EQ(chunked, one_shot) << shape.text();
      }
    }
  }
}

}  // namespace
}  // namespace pipeinfer::kernels
