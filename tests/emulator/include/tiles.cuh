// In place of src/kernels/cuda/tiles.cuh: what its instructions do (PTX ISA 8.0, "Asynchronous warpgroup level matrix
// instructions" and "Tensors"), thread by thread.
#pragma once

#include "mma.cuh"

namespace pipeinfer::kernels::cuda {

inline constexpr int kBoxColumns = 64;
inline constexpr int kBoxPitch = kBoxColumns * 2;

struct TileMap {
  const void* data;
  int64_t rows;
  int columns, box_rows;
};

inline TileMap make_tile_map(const void* data, int64_t rows, int columns, int box_rows) {
  if (!aligned(16, data) || rows <= 0 || columns <= 0 || columns % 8 != 0)
    emulator::fail("a matrix of which no boxes can be copied");
  if (box_rows < 1 || box_rows > 256) emulator::fail("a box has 1 to 256 rows");
  return {data, rows, columns, box_rows};
}

/// Where a box has the 16 bytes that begin with byte `at` of a row.
inline int swizzled(int row, int at) { return row * kBoxPitch + ((at / 16) ^ (row % 8)) * 16; }

inline void arrive_expecting(Barrier* there, int bytes) { there->arrive(bytes); }

inline void copy_box(void* to, const TileMap& map, int row, int column, Barrier* there) {
  const int bytes = map.box_rows * kBoxPitch;
  emulator::check_shared(to, bytes, 1024);
  if (row < 0 || column < 0) emulator::fail("a box that begins before its matrix");
  there->copy(to, bytes, [to = static_cast<char*>(to), map, row, column] {
    const char* const data = static_cast<const char*>(map.data);
    const int64_t pitch = int64_t{map.columns} * 2;
    for (int r = 0; r < map.box_rows; ++r) {
      for (int at = 0; at < kBoxPitch; at += 16) {
        const int64_t from = int64_t{column} * 2 + at;
        const int64_t there = row + int64_t{r} < map.rows ? std::clamp<int64_t>(pitch - from, 0, 16) : 0;
        char piece[16] = {};
        if (there > 0) memcpy(piece, data + (row + int64_t{r}) * pitch + from, there);
        memcpy(to + swizzled(r, at), piece, sizeof piece);
      }
    }
  });
}

inline void prefetch_box(const TileMap&, int, int) {}
inline void order_before_global_copies() {}

using Elements = std::array<float, 16>;  // of k

/// 16 elements of a box's row.
template <typename T>
Elements box_elements(const char* first, int row) {
  const int begin = static_cast<int>(reinterpret_cast<uintptr_t>(first) % kBoxPitch);
  T elements[16];
  for (int half = 0; half < 2; ++half)
    memcpy(elements + half * 8, first - begin + swizzled(row, begin + half * 16), 16);
  Elements values;
  for (int k = 0; k < 16; ++k) values[k] = to_float(elements[k]);
  return values;
}

/// A product whose thread adds its rows of a, g and g + 8, times its columns of b: of_a(row of the warpgroup) and
/// of_b(column) read them when it happens.
template <int N, typename A, typename B>
void start_product(float (&c)[N / 2], A of_a, B of_b) {
  static_assert(N == 8 || N == 16 || N == 32 || N == 64);
  emulator::start_product(c, N / 2, [=](float* sums) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, row = threadIdx.x / 32 % 4 * 16 + g;
    const Elements rows[2] = {of_a(row), of_a(row + 8)};
    for (int column = 0; column < N / 4; ++column) {  // of those that the thread has
      const int j = column / 2, i = column % 2;
      const Elements elements = of_b(8 * j + 2 * t + i);
      for (int half = 0; half < 2; ++half) {
        for (int k = 0; k < 16; ++k) sums[4 * j + 2 * half + i] += rows[half][k] * elements[k];
      }
    }
  });
}

template <typename T, int N>
void multiply_boxes(float (&c)[N / 2], const char* a, const char* b) {
  for (const auto& [first, rows] : {std::pair{a, 64}, std::pair{b, N}}) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(first) % kBoxPitch;
    if (begin % 32 != 0) emulator::fail("a product of columns that are not 16 of a box's");
    emulator::check_shared(first - begin, rows * kBoxPitch, 1024);
  }
  start_product<N>(
      c, [a](int row) { return box_elements<T>(a, row); }, [b](int row) { return box_elements<T>(b, row); });
}

struct Groups {
  const char* first;
  int n_bytes, k_bytes;

  Groups(const char* first, int n_bytes, int k_bytes) : first(first), n_bytes(n_bytes), k_bytes(k_bytes) {
    for (int bytes : {n_bytes, k_bytes})
      if (bytes % 16 != 0 || bytes / 16 >= 1 << 14) emulator::fail("a distance that no descriptor holds");
  }
  Groups operator+(int bytes) const {
    if (bytes % 16 != 0) emulator::fail("a distance that no descriptor holds");
    return {first + bytes, n_bytes, k_bytes};
  }
  void check(int n) const {
    for (int i = 0; i < n / 8; ++i)
      for (int j = 0; j < 2; ++j) emulator::check_shared(first + i * n_bytes + j * k_bytes, 128, 16);
  }
  /// Of n; the groups' rows are neighbours in k, or in n.
  template <typename T>
  Elements elements(int n, bool in_k) const {
    Elements values;
    for (int k = 0; k < 16; ++k) {
      T element;
      const char* group = first + n / 8 * n_bytes + k / 8 * k_bytes;
      memcpy(&element, group + (in_k ? n % 8 * 16 + k % 8 * 2 : k % 8 * 16 + n % 8 * 2), sizeof element);
      values[k] = to_float(element);
    }
    return values;
  }
};

template <typename T, int N>
void multiply_groups(float (&c)[N / 2], Groups a, Groups b) {
  a.check(64);
  b.check(N);
  start_product<N>(
      c, [a](int row) { return a.elements<T>(row, true); },
      [b](int row) { return b.elements<T>(row, true); });
}

template <typename T, int N>
void multiply_groups(float (&c)[N / 2], const uint32_t (&a)[4], Groups b) {
  b.check(N);
  emulator::Shown own{};
  for (int i = 0; i < 4; ++i) {
    T pair[2];
    memcpy(pair, &a[i], sizeof pair);
    for (int j = 0; j < 2; ++j) own[2 * i + j] = to_float(pair[j]);
  }
  const auto& shown = emulator::show(own, "wgmma");
  std::array<Elements, 2> rows;
  for (int k = 0; k < 16; ++k) {
    const emulator::Shown& of_lane = shown[threadIdx.x % 32 / 4 * 4 + k % 8 / 2];
    for (int r = 0; r < 2; ++r) rows[r][k] = of_lane[(k / 8 * 2 + r) * 2 + k % 2];
  }
  start_product<N>(
      c, [rows](int row) { return rows[row % 16 / 8]; }, [b](int row) { return b.elements<T>(row, false); });
}

inline void begin_products() { emulator::begin_products(); }
inline void end_products() { emulator::end_products(); }
template <int n>
void wait_products() {
  emulator::wait_products(n);
}

inline void sync_threads(int id, int threads) { emulator::sync_threads(id, threads); }

inline int cluster_rank() { return static_cast<int>(emulator::cluster_rank()); }
inline void sync_cluster() { emulator::sync_cluster(); }
inline void leave_cluster() { emulator::sync_cluster(); }
inline float4 load_from_cluster(const float* own, int rank) {
  return *static_cast<const float4*>(emulator::of_cluster(own, rank));
}

}  // namespace pipeinfer::kernels::cuda
