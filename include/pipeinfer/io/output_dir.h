// The output folder of a run: when it may be used, and what a resume must agree with.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace pipeinfer {

enum class OutputMode {
  fresh,      ///< a folder that holds a run's files is refused
  resume,     ///< continues what is there; nothing there: like fresh
  overwrite,  ///< removes the files of the run that is there, and nothing else
};

/// Throws Error(usage) where a run may not use the folder: it holds a run's files and the mode is fresh, it
/// is a file, or neither it nor its nearest existing parent can be written. Changes nothing (for --dry-run).
void check_output_dir(const std::string& output_dir, OutputMode mode);

/// The same, then creates the folder with its parents, and to overwrite removes the old run's logs and metrics: what
/// ranks open before they are known to serve. Rank 0 calls it, before any rank opens a file there.
void prepare_output_dir(const std::string& output_dir, OutputMode mode);

/// To overwrite: removes all that is left of the old run but logs and metrics, the new run's by now. Rank 0 calls it
/// once every rank is ready to serve, so that a run that cannot start costs nobody the old one.
void remove_old_results(const std::string& output_dir);

/// manifest.json: all that makes the same prompts complete to the same text.
struct Manifest {
  std::map<std::string, std::string>
      facts;                      ///< name -> value or hash: "config.json", "tensor headers", "seed", ...
  std::vector<uint64_t> prompts;  ///< PromptRecord::hash of every prompt of the file, by prompt_index
};

/// Writes `<output_dir>/manifest.json` by a temporary file and a rename. Throws Error(failed).
void write_manifest(const std::string& output_dir, const Manifest& manifest);

/// Whether there is a run to resume: throws Error(usage) that names every fact and the first prompt that
/// differ from the manifest there (prompts may be appended), that the manifest is broken, or that there are
/// records but no manifest. False where nothing is there.
bool check_resumable(const std::string& output_dir, const Manifest& now);

/// Writes `text` to `path` by a temporary file, fsync and rename: readers see the old or the new file, whole.
/// Throws Error(failed) that names the file and the reason.
void write_file(const std::string& path, const std::string& text);

}  // namespace pipeinfer
