# pipeinfer_torch: LibTorch out of the Python package, CPU operators only. find_package(Torch) is not used: it fails
# where the package is built for CUDA and no toolkit is there. GPUs need no more than this either, since our own
# kernels work there and a tensor that only views device memory needs no libtorch_cuda.
#
# PIPEINFER_TORCH_LIBRARIES: what an installed executable has to carry along, CUDA's host libraries that
# libtorch_cpu.so itself is linked to included.
if(PIPEINFER_TORCH_ROOT)
  set(torch_root ${PIPEINFER_TORCH_ROOT})
else()
  file(GLOB torch_root ${PROJECT_SOURCE_DIR}/build/venv/lib/python3*/site-packages/torch)
  if(NOT torch_root)
    find_program(PIPEINFER_PYTHON3 NAMES python3)
    execute_process(
      COMMAND ${PIPEINFER_PYTHON3} -c
              "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
      OUTPUT_VARIABLE torch_root
      OUTPUT_STRIP_TRAILING_WHITESPACE
      ERROR_QUIET)
  endif()
endif()
if(NOT EXISTS "${torch_root}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "LibTorch: expected ${torch_root}/lib/libtorch_cpu.so. Run scripts/setup.sh, or set "
                      "PIPEINFER_TORCH_ROOT to the folder of the Python package torch.")
endif()
message(STATUS "LibTorch: ${torch_root}")

add_library(pipeinfer_torch INTERFACE)
target_include_directories(pipeinfer_torch SYSTEM INTERFACE ${torch_root}/include
                                                            ${torch_root}/include/torch/csrc/api/include)
target_link_libraries(pipeinfer_torch INTERFACE ${torch_root}/lib/libtorch_cpu.so ${torch_root}/lib/libc10.so)

file(GLOB torch_companions ${torch_root}/lib/libgomp*.so* ${torch_root}/../nvidia/*/lib/libcudart.so.*
     ${torch_root}/../nvidia/*/lib/libcupti.so.*)
set(PIPEINFER_TORCH_LIBRARIES ${torch_root}/lib/libtorch_cpu.so ${torch_root}/lib/libc10.so ${torch_companions}
    CACHE INTERNAL "LibTorch's libraries that an installed executable carries along")
