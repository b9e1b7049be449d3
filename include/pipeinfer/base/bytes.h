// Reading and writing small binary messages: little-endian, bounded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer {

/// Appends plain values, counted vectors and strings. Host order, which is little-endian wherever CUDA runs.
class ByteWriter {
 public:
  template <typename T>
  void put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto* begin = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), begin, begin + sizeof(T));
  }
  template <typename T>
  void put_all(std::span<const T> values) {
    static_assert(std::is_trivially_copyable_v<T>);
    put(static_cast<uint32_t>(values.size()));
    const auto bytes = std::as_bytes(values);
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  template <typename T>
  void put_all(const std::vector<T>& values) {
    put_all(std::span<const T>(values));
  }
  void put_text(const std::string& text) { put_all(std::span<const char>(text)); }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

/// The reverse. Throws Error(failed) that names `what` where a value or a count goes beyond the end.
class ByteReader {
 public:
  ByteReader(std::span<const std::byte> bytes, const char* what) : bytes_(bytes), what_(what) {}

  template <typename T>
  T get() {
    static_assert(std::is_trivially_copyable_v<T>);
    T value;
    std::memcpy(&value, next(sizeof(T)), sizeof(T));
    return value;
  }
  template <typename T>
  std::vector<T> get_all() {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto n = get<uint32_t>();
    if (n > bytes_.size() / sizeof(T))
      fail(cat(n, " elements are counted, ", bytes_.size(), " bytes are left"));
    std::vector<T> values(n);
    if (n > 0) std::memcpy(values.data(), next(n * sizeof(T)), n * sizeof(T));
    return values;
  }
  std::string get_text() {
    const auto n = get<uint32_t>();
    const std::byte* begin = next(n);
    return std::string(reinterpret_cast<const char*>(begin), n);
  }
  /// Throws where bytes are left over.
  void end() const {
    if (!bytes_.empty()) fail(cat(bytes_.size(), " bytes are left over"));
  }

 private:
  const std::byte* next(size_t n) {
    if (n > bytes_.size()) fail(cat("it ends ", n - bytes_.size(), " bytes early"));
    const std::byte* begin = bytes_.data();
    bytes_ = bytes_.subspan(n);
    return begin;
  }
  [[noreturn]] void fail(const std::string& why) const { runtime_failure(cat("broken ", what_, ": ", why)); }

  std::span<const std::byte> bytes_;
  const char* what_;
};

}  // namespace pipeinfer
