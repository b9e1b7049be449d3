// 64-bit hashes: keys of the sampling RNG and of the manifest. The values are part of the file format.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pipeinfer {

/// FNV-1a, 64 bits (http://www.isthe.com/chongo/tech/comp/fnv/); `seed` continues an earlier hash.
uint64_t hash64(std::string_view bytes, uint64_t seed = 0xcbf29ce484222325ull);

/// 16 lower-case hex digits.
std::string hex64(uint64_t value);

}  // namespace pipeinfer
