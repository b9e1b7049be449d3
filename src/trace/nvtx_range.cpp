#include <nvtx3/nvToolsExt.h>

#include "pipeinfer/trace/range.h"

namespace pipeinfer {

Range::Range(const char* name) { nvtxRangePushA(name); }

Range::~Range() { nvtxRangePop(); }

}  // namespace pipeinfer
