# Finds what _C_cuda is built with, and says why it is not: vlprune_why_no_cuda is empty where it can be built.
#
# nvcc and CUTLASS's headers may be the machine's or come from the package registry (the extra "cuda"), in the
# Python that runs the build or, where pip isolates that one, in the environment it was started from.
set(VLPRUNE_CUDA AUTO CACHE STRING "Build _C_cuda: ON, OFF, or AUTO: where there is a GPU and nvcc")
set_property(CACHE VLPRUNE_CUDA PROPERTY STRINGS AUTO ON OFF)

execute_process(
  COMMAND ${Python_EXECUTABLE} -c
    "import sys, sysconfig; print(*filter(None, sys.path), sysconfig.get_path('purelib'), sep=';')"
  OUTPUT_VARIABLE python_packages OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)

file(GLOB toolkits /usr/local/cuda /usr/local/cuda-*)
set(packaged_toolkits)
foreach(packages ${python_packages})
  file(GLOB found ${packages}/nvidia/cu1*)
  list(APPEND packaged_toolkits ${found})
endforeach()
find_program(VLPRUNE_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS ${toolkits} ${packaged_toolkits}
  PATH_SUFFIXES bin DOC "CUDA's compiler")
find_path(VLPRUNE_CUTLASS_INCLUDE cutlass/version.h HINTS ENV CUTLASS_PATH ${python_packages}
  PATH_SUFFIXES include cutlass_library/source/include DOC "CUTLASS's headers, 4.2")

set(nvcc_version 0)
if(VLPRUNE_NVCC)
  execute_process(COMMAND ${VLPRUNE_NVCC} --version OUTPUT_VARIABLE nvcc_says ERROR_QUIET)
  if(nvcc_says MATCHES "release ([0-9.]+)")
    set(nvcc_version ${CMAKE_MATCH_1})
  endif()
endif()

set(cutlass_version 0)
if(VLPRUNE_CUTLASS_INCLUDE)
  file(READ ${VLPRUNE_CUTLASS_INCLUDE}/cutlass/version.h cutlass_says)
  if(cutlass_says MATCHES "CUTLASS_MAJOR ([0-9]+).*CUTLASS_MINOR ([0-9]+)")
    set(cutlass_version ${CMAKE_MATCH_1}.${CMAKE_MATCH_2})
  endif()
endif()

find_program(VLPRUNE_NVIDIA_SMI nvidia-smi)
set(gpu_found FALSE)
if(EXISTS /dev/nvidia0)
  set(gpu_found TRUE)
elseif(VLPRUNE_NVIDIA_SMI)
  execute_process(COMMAND ${VLPRUNE_NVIDIA_SMI} -L OUTPUT_VARIABLE gpus ERROR_QUIET RESULT_VARIABLE status)
  if(status EQUAL 0 AND gpus MATCHES "GPU 0")
    set(gpu_found TRUE)
  endif()
endif()

set(vlprune_why_no_cuda "")
if(VLPRUNE_CUDA STREQUAL "AUTO" AND NOT gpu_found)
  set(vlprune_why_no_cuda "there was no GPU where vlprune was built (VLPRUNE_CUDA=1 builds it all the same)")
elseif(VLPRUNE_CUDA STREQUAL "AUTO" OR VLPRUNE_CUDA)
  if(NOT VLPRUNE_NVCC)
    set(vlprune_why_no_cuda "nvcc was not found (set CUDA_HOME, or install vlprune[cuda])")
  elseif(nvcc_version VERSION_LESS 12.8)
    set(vlprune_why_no_cuda "${VLPRUNE_NVCC} is of CUDA ${nvcc_version}, 12.8 or newer is needed")
  elseif(NOT VLPRUNE_CUTLASS_INCLUDE)
    set(vlprune_why_no_cuda "CUTLASS's headers were not found (set CUTLASS_PATH, or install nvidia-cutlass)")
  elseif(cutlass_version VERSION_LESS 4.2 OR cutlass_version VERSION_GREATER_EQUAL 5)
    set(vlprune_why_no_cuda
      "CUTLASS in ${VLPRUNE_CUTLASS_INCLUDE} is ${cutlass_version}, 4.2 or a newer 4 is needed (CUTLASS_PATH)")
  endif()
else()
  set(vlprune_why_no_cuda "it was turned off when vlprune was built (VLPRUNE_CUDA=0)")
endif()

if(vlprune_why_no_cuda AND NOT VLPRUNE_CUDA STREQUAL "AUTO" AND VLPRUNE_CUDA)
  message(FATAL_ERROR "VLPRUNE_CUDA: the CUDA extension cannot be built: ${vlprune_why_no_cuda}")
elseif(vlprune_why_no_cuda)
  message(STATUS "The CUDA extension is not built: ${vlprune_why_no_cuda}")
else()
  message(STATUS "The CUDA extension is built with ${VLPRUNE_NVCC} and ${VLPRUNE_CUTLASS_INCLUDE}")
endif()
