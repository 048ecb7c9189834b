# SPDX-License-Identifier: Apache-2.0
#
# How a .cu file becomes an object. Not CMake's own CUDA language: that has one compiler, and a
# build for Pascal and Blackwell needs two. tools/cuda_toolchain.py says who makes what.
#
#   nvcc alone            one nvcc command: machine code for each architecture, and the host's half
#   the Pascal compiler   it makes machine code for what nvcc does not know, nvcc for the rest;
#   has a part in it      fatbinary puts all into one fat binary, around which it compiles the
#                         host's half
#
# Either way the object holds one fat binary with one set of kernels, out of which the CUDA runtime
# takes what fits the GPU: launchers know nothing of it. That needs kernels to have the same name
# from both compilers, which they have unless they stand in an unnamed namespace;
# tools/kernel_report.py checks it. What ptxas said is kept in <build>/cuda/*.log.
# -E: in an isolated build PYTHONPATH hides the environment, and so a compiler from PyPI in it.
execute_process(
  COMMAND "${Python_EXECUTABLE}" -E "${CMAKE_CURRENT_LIST_DIR}/cuda_toolchain.py"
          --archs "${HIRED_CUDA_ARCHS}" --ptx "${HIRED_CUDA_PTX}" --format cmake
  OUTPUT_VARIABLE plan ERROR_VARIABLE refusal RESULT_VARIABLE refused)
if(refused)
  message(FATAL_ERROR "${refusal}")
endif()
set(HIRED_CUDA_FOLDER "${CMAKE_BINARY_DIR}/cuda")
file(MAKE_DIRECTORY "${HIRED_CUDA_FOLDER}")
# Touched only when it changes: every command below depends on it.
file(CONFIGURE OUTPUT "${HIRED_CUDA_FOLDER}/plan.cmake" CONTENT "${plan}" @ONLY)
file(WRITE "${HIRED_CUDA_FOLDER}/logs.txt" "")
include("${HIRED_CUDA_FOLDER}/plan.cmake")
set(HIRED_CUDA_TOOLS "${CMAKE_CURRENT_LIST_DIR}")
set(HIRED_LOGGED "${Python_EXECUTABLE}" "${HIRED_CUDA_TOOLS}/logged_compile.py")

# One custom command; `depfile` names the headers.
function(hired_run output depfile)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "" "DEPENDS;COMMAND")
  set(depends ${arg_DEPENDS} "${HIRED_CUDA_FOLDER}/plan.cmake")
  if(depfile)
    list(APPEND depends DEPFILE "${depfile}")
  endif()
  get_filename_component(name "${output}" NAME)
  add_custom_command(OUTPUT "${output}" COMMAND ${arg_COMMAND} DEPENDS ${depends}
                     COMMENT "Building CUDA ${name}" VERBATIM COMMAND_EXPAND_LISTS)
endfunction()

# hired_cuda_source(TARGET SOURCE FROM ARCH): adds a source, for the architectures from ARCH on;
# where there are none, nothing.
function(hired_cuda_source target source)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "FROM" "")
  set(archs "")
  set(ptx "")
  foreach(arch IN LISTS HIRED_CUDA_BUILT)
    if(arch GREATER_EQUAL arg_FROM)
      list(APPEND archs ${arch})
    endif()
  endforeach()
  foreach(arch IN LISTS HIRED_CUDA_BUILT_PTX)
    if(arch GREATER_EQUAL arg_FROM)
      list(APPEND ptx ${arch})
    endif()
  endforeach()
  if(NOT archs AND NOT ptx)
    return()
  endif()

  get_filename_component(stem "${source}" NAME_WE)
  set(path "${CMAKE_CURRENT_SOURCE_DIR}/${source}")
  set(base "${HIRED_CUDA_FOLDER}/${stem}")
  # As tools/device_code.py has them, and clang's below.
  set(flags -std=c++17 -O3 -I "${CMAKE_CURRENT_SOURCE_DIR}/csrc")
  foreach(definition IN LISTS HIRED_CUDA_DEFINITIONS)
    list(APPEND flags "-D${definition}")
  endforeach()
  set(nvcc "${HIRED_NVCC}" ${flags} -ccbin "${CMAKE_CXX_COMPILER}" -Xptxas -v)
  if(NOT HIRED_PASCAL)
    set(codes "")
    foreach(arch IN LISTS archs)
      list(APPEND codes -gencode "arch=compute_${arch},code=sm_${arch}")
    endforeach()
    foreach(arch IN LISTS ptx)
      list(APPEND codes -gencode "arch=compute_${arch},code=compute_${arch}")
    endforeach()
    file(APPEND "${HIRED_CUDA_FOLDER}/logs.txt" "${stem} ${stem}.log\n")
    hired_run("${base}.o" "${base}.d" DEPENDS "${path}" COMMAND
      ${HIRED_LOGGED} "${base}.log" ${nvcc} ${codes} -Xcompiler -fPIC,-fvisibility=hidden,-Wall
      -MD -MF "${base}.d" -c "${path}" -o "${base}.o")
  else()
    # __grid_constant__ is unknown to clang 19, and unused below sm_70.
    set(clang "${HIRED_PASCAL}/bin/clang++" -x cuda "--cuda-path=${HIRED_PASCAL}" ${flags} -fPIC
              -fvisibility=hidden -include "${HIRED_CUDA_TOOLS}/clang_cuda.h" -Wall
              -Wno-unknown-cuda-version -Wno-unknown-attributes)
    set(images "")
    set(files "")
    foreach(kind IN ITEMS elf ptx)
      if(kind STREQUAL elf)
        set(wanted ${archs})
        set(nvcc_kind -cubin -arch=sm_)
        set(clang_kind -c -Xcuda-ptxas -v)
      else()
        set(wanted ${ptx})
        set(nvcc_kind -ptx -arch=compute_)
        set(clang_kind -S)
      endif()
      foreach(arch IN LISTS wanted)
        set(image "${base}.sm_${arch}.${kind}")
        file(APPEND "${HIRED_CUDA_FOLDER}/logs.txt" "${stem} ${stem}.sm_${arch}.${kind}.log\n")
        if(arch IN_LIST HIRED_CUDA_BY_PASCAL)
          set(command ${clang} --cuda-gpu-arch=sm_${arch} --cuda-device-only ${clang_kind})
        else()
          set(command ${nvcc} ${nvcc_kind}${arch})
        endif()
        hired_run("${image}" "${image}.d" DEPENDS "${path}" COMMAND
          ${HIRED_LOGGED} "${image}.log" ${command} -MD -MF "${image}.d" "${path}" -o "${image}")
        list(APPEND files "${image}")
        list(APPEND images "--image3=kind=${kind},sm=${arch},file=${image}")
      endforeach()
    endforeach()
    # Compressed as drivers of CUDA 12 read it.
    hired_run("${base}.fatbin" "" DEPENDS ${files} COMMAND
      "${HIRED_PASCAL}/bin/fatbinary" -64 --compress-mode=speed --create "${base}.fatbin" ${images})
    list(GET HIRED_CUDA_BY_PASCAL 0 any_arch)
    hired_run("${base}.o" "${base}.d" DEPENDS "${path}" "${base}.fatbin" COMMAND
      ${clang} --cuda-gpu-arch=sm_${any_arch} --cuda-host-only -Xclang -fcuda-include-gpubinary
      -Xclang "${base}.fatbin" -MD -MF "${base}.d" -c "${path}" -o "${base}.o")
  endif()
  target_sources(${target} PRIVATE "${base}.o")
  set_source_files_properties("${base}.o" PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
endfunction()
