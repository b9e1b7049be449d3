// The twin of nvtx_range.cpp for builds without CUDA.
#include "pipeinfer/trace/range.h"

namespace pipeinfer {

Range::Range(const char*) {}

Range::~Range() = default;

}  // namespace pipeinfer
