#include "pipeinfer/comm/launch.h"

#include <mpi.h>

#include <charconv>
#include <cstring>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer {

std::optional<Launch> find_launch(const std::function<const char*(const char*)>& variable) {
  auto number = [&](const char* name) -> std::optional<int> {
    const char* text = variable(name);
    int value = 0;
    if (!text || std::from_chars(text, text + std::strlen(text), value).ec != std::errc())
      return std::nullopt;
    return value;
  };
  // mpirun first: inside an allocation it starts its daemons by srun, whose variables then count nodes, not ranks.
  if (auto tasks = number("OMPI_COMM_WORLD_SIZE")) {
    return Launch{"mpirun", tasks, number("OMPI_COMM_WORLD_RANK").value_or(0)};
  }
  // SLURM_NTASKS is no evidence (sbatch and salloc set it for the shell); a step's own variables are.
  const auto step_tasks = number("SLURM_STEP_NUM_TASKS");
  const bool in_step = step_tasks && variable("SLURM_PROCID");
  const auto pmi_tasks = number("PMI_SIZE"), pmi_rank = number("PMI_RANK"), pmix_rank = number("PMIX_RANK");
  if (pmi_tasks) return Launch{in_step ? "Slurm" : "mpirun", pmi_tasks, pmi_rank.value_or(0)};
  if (in_step) {
    return Launch{"Slurm", step_tasks, number("SLURM_PROCID").value_or(0), pmix_rank || pmi_rank};
  }
  if (pmix_rank) return Launch{"mpirun", std::nullopt, *pmix_rank};
  return std::nullopt;
}

void check_world(const Launch& launch, int mpi_size) {
  if (!launch.tasks || *launch.tasks == mpi_size) return;
  const char* remedy = launch.launcher == "Slurm"
                           ? "use srun --mpi=pmix, or mpirun inside the allocation"
                           : "use the mpirun of the MPI library that pipeinfer was built with";
  usage_error(cat(launch.launcher, " started ", *launch.tasks, " tasks but MPI sees a world of ", mpi_size,
                  ": ", remedy));
}

std::string mpi_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  return std::string(text, length).substr(0, std::string(text, length).find_first_of(",\n"));
}

}  // namespace pipeinfer
