// The end of the whole job where MPI_Abort cannot be called.
#pragma once

namespace pipeinfer {

/// Asks the launcher, through PMIx, to take all ranks down, and ends this process with `exit_code` within some seconds.
/// For when MPI_Init has not returned or its thread hangs: a launcher that was told to let survivors live would
/// otherwise wait for a stopped rank for ever. Where no PMIx is loaded this process just ends.
[[noreturn]] void launcher_abort(int exit_code) noexcept;

}  // namespace pipeinfer
