#!/usr/bin/env python3
"""The layering check on planted trees: it finds each violation, and lets through what the table allows."""
import tempfile
import unittest
from pathlib import Path

from check_layering import violations


def check(**files: str) -> list[str]:
    """Violations in a tree of these files; in a name, `__` stands for `/` and `_H`, `_CPP` for the suffix."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = Path(folder) / name.replace("__", "/").replace("_H", ".h").replace("_CPP", ".cpp")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return violations(Path(folder))


class Layering(unittest.TestCase):
    def test_allowed(self):
        self.assertEqual(check(
            include__pipeinfer__sched__a_H='#pragma once\n#include <vector>\n#include "pipeinfer/batch/b.h"\n',
            src__base__log_CPP='#include <spdlog/spdlog.h>\n#include <sys/stat.h>\n',
            src__comm__mpi_CPP='#include <mpi.h>\n#include <nccl.h>\n#include <cuda_runtime.h>\n',
            src__model__m_CPP='#include <ATen/core/Tensor.h>\n#include "parts.h"\n', src__model__parts_H='',
            src__app__main_CPP='#include <CLI/CLI.hpp>\n#include "pipeinfer/model/m.h"\n'), [])

    def test_upward_include_is_found_with_its_line(self):
        self.assertEqual(check(src__config__c_CPP='#include <string>\n/* two\nlines */\n#include "pipeinfer/io/w.h"\n'),
                         ["src/config/c.cpp:4: layer config must not include io: pipeinfer/io/w.h"])

    def test_pipeline_knows_no_model(self):
        self.assertEqual(len(check(src__pipeline__p_CPP='#include "pipeinfer/model/m.h"\n#include <torch/torch.h>\n')), 2)

    def test_libraries_stay_in_their_layer(self):
        for layer, spelling in [("app", "mpi.h"), ("app", "nccl.h"), ("app", "ATen/ATen.h"), ("pipeline", "mpi.h"),
                                ("kernels", "c10/core/Device.h"), ("config", "CLI/CLI.hpp"), ("io", "spdlog/spdlog.h"),
                                ("sched", "nlohmann/json.hpp"), ("batch", "cuda_runtime.h"), ("model", "nvml.h")]:
            with self.subTest(layer=layer, spelling=spelling):
                self.assertEqual(len(check(**{f"src__{layer}__x_CPP": f"  # include <{spelling}>\n"})), 1)

    def test_spdlog_in_a_header(self):
        self.assertEqual(check(include__pipeinfer__base__log_H='#include <spdlog/spdlog.h>\n'),
                         ["include/pipeinfer/base/log.h:1: spdlog must stay out of headers: spdlog/spdlog.h"])

    def test_relative_path_into_another_layer(self):
        found = check(src__sched__s_CPP='#include "../comm/tags.h"\n', src__comm__tags_H="")
        self.assertEqual(found, ["src/sched/s.cpp:1: layer sched must not include comm: ../comm/tags.h"])

    def test_unknown_layer_and_library(self):
        self.assertEqual(check(src__util__u_CPP=""), ["src/util/u.cpp: lies in no layer of the table"])
        self.assertEqual(len(check(src__base__b_CPP='#include <boost/any.hpp>\n#include "pipeinfer/util/u.h"\n')), 2)

    def test_comment_is_no_include(self):
        self.assertEqual(check(src__base__b_CPP='// #include <mpi.h>\n/*\n#include <mpi.h>\n*/\n'), [])


if __name__ == "__main__":
    unittest.main()
