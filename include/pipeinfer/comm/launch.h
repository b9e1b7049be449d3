// Who started this process, and how many like it, as far as the environment tells: no MPI has to run for it.
#pragma once

#include <functional>
#include <optional>
#include <string>

namespace pipeinfer {

struct Launch {
  std::string launcher;      ///< "mpirun" or "Slurm"
  std::optional<int> tasks;  ///< unknown under some PMIx launchers
  int rank = 0;
  bool has_pmi = true;  ///< whether MPI can find its peers (srun offers it with --mpi=pmix)
};

/// Nothing when the process was started alone, which includes a shell inside an sbatch or salloc allocation, where no
/// srun step was made. `variable` returns an environment variable, or null (tests give their own).
std::optional<Launch> find_launch(const std::function<const char*(const char*)>& variable);

/// Throws Error(usage) when the launcher started another number of tasks than MPI sees.
void check_world(const Launch& launch, int mpi_size);

/// "Open MPI v4.1.4", the library at run time.
std::string mpi_version();

}  // namespace pipeinfer
