// SPDX-License-Identifier: Apache-2.0
//
// The part of the CUDA runtime that launchers call, on host memory: a launch runs to its end
// before it returns (within hired_emulator::together: queued), streams are names, the device is
// the one that hired_emulator::device describes. Limits are checked as the runtime checks them.
#pragma once

#include <map>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda_types.h"
#include "scheduler.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorNotSupported = 801,
  cudaErrorStreamCaptureUnsupported = 900,
};

typedef struct CUstream_st* cudaStream_t;

enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone,
  cudaStreamCaptureStatusActive,
  cudaStreamCaptureStatusInvalidated,
};
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed,
};
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrCooperativeLaunch = 95,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrClusterLaunch = 120,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 13,
};
struct cudaFuncAttributes {
  int binaryVersion, ptxVersion, maxThreadsPerBlock, maxDynamicSharedSizeBytes, numRegs;
  size_t sharedSizeBytes, localSizeBytes, constSizeBytes;
};
enum cudaLaunchAttributeID {
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeClusterDimension = 4,
};
union cudaLaunchAttributeValue {
  int cooperative;
  struct {
    unsigned x, y, z;
  } clusterDim;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

constexpr unsigned cudaStreamDefault = 0;
constexpr unsigned cudaStreamNonBlocking = 1;

namespace hired_emulator {

// The device that launchers see; a test sets it.
struct Device {
  int index = 0;
  int major = 6, minor = 1;
  int multiprocessors = 30;
  int shared_per_block = 48 << 10;
  int shared_per_block_optin = 48 << 10;
  int shared_per_multiprocessor = 96 << 10;
  int threads_per_multiprocessor = 2048;
  int blocks_per_multiprocessor = 4;  // what the occupancy query answers
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  bool old_driver = false;  // before CUDA 12.3: no code is loaded in a capture
};
inline Device device;
inline cudaError_t last_error = cudaSuccess;
inline std::set<const void*> loaded;  // kernels: by a question about them, or their first launch
inline std::map<const void*, size_t> shared_limits;  // of kernels that asked for more

inline cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// Lazily, as CUDA loads a kernel's code.
inline cudaError_t load(const void* kernel) {
  if (device.old_driver && device.capture != cudaStreamCaptureStatusNone &&
      loaded.count(kernel) == 0) {
    return remember(cudaErrorStreamCaptureUnsupported);
  }
  loaded.insert(kernel);
  return cudaSuccess;
}

template <class... Parameters>
cudaError_t launch_checked(void (*kernel)(Parameters...), Launch launch, void** arguments,
                           bool cooperative) {
  const uint64_t threads = uint64_t{launch.block.x} * launch.block.y * launch.block.z;
  const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  if (threads == 0 || threads > 1024 || launch.block.z > 64 || blocks == 0 ||
      launch.grid.x > INT32_MAX || launch.grid.y > 65535 || launch.grid.z > 65535 ||
      launch.cluster_size == 0 || launch.grid.x % launch.cluster_size != 0) {
    return remember(cudaErrorInvalidConfiguration);
  }
  const auto limit = shared_limits.find(reinterpret_cast<const void*>(kernel));
  if (launch.shared_bytes > (limit == shared_limits.end()
                                 ? static_cast<size_t>(device.shared_per_block)
                                 : limit->second)) {
    return remember(cudaErrorInvalidValue);
  }
  if (launch.cluster_size > 1 && (device.major < 9 || launch.cluster_size > 8)) {
    return remember(cudaErrorInvalidConfiguration);
  }
  if (cooperative && blocks > options().resident_blocks) {
    return remember(cudaErrorCooperativeLaunchTooLarge);
  }
  // A kernel's parameters: 4 KB, from sm_70 on 32,764 bytes.
  if ((sizeof(Parameters) + ... + size_t{0}) > (device.major >= 7 ? 32764u : 4096u)) {
    return remember(cudaErrorInvalidValue);
  }
  if (load(reinterpret_cast<const void*>(kernel)) != cudaSuccess) return last_error;
  size_t next = 0;
  std::tuple<Parameters...> values{*static_cast<Parameters*>(arguments[next++])...};
  launch.thread = [kernel, values] { std::apply(kernel, values); };
  return submit(std::move(launch)) ? cudaSuccess : remember(cudaErrorLaunchFailure);
}

}  // namespace hired_emulator

inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDeviceFunction: return "cudaErrorInvalidDeviceFunction";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
    case cudaErrorLaunchOutOfResources: return "cudaErrorLaunchOutOfResources";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorCooperativeLaunchTooLarge: return "cudaErrorCooperativeLaunchTooLarge";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
  }
  return "unrecognized error code";
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return cudaGetErrorName(error);
}
inline cudaError_t cudaPeekAtLastError() {
  return hired_emulator::last_error;
}
inline cudaError_t cudaGetLastError() {
  return std::exchange(hired_emulator::last_error, cudaSuccess);
}

// --- launches ------------------------------------------------------------------------------------

template <class... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes = 0, cudaStream_t stream = nullptr) {
  return hired_emulator::launch_checked(
      kernel, {grid, block, shared_bytes, hired_emulator::options().cluster_size, stream, nullptr},
      arguments, false);
}

template <class... Parameters>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                        void** arguments, size_t shared_bytes = 0,
                                        cudaStream_t stream = nullptr) {
  return hired_emulator::launch_checked(kernel, {grid, block, shared_bytes, 1, stream, nullptr},
                                        arguments, true);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  unsigned cluster_size = hired_emulator::options().cluster_size;
  bool cooperative = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id == cudaLaunchAttributeCooperative) {
      cooperative = attribute.val.cooperative != 0;
    } else if (attribute.id == cudaLaunchAttributeClusterDimension) {
      cluster_size = attribute.val.clusterDim.x;
      if (attribute.val.clusterDim.y != 1 || attribute.val.clusterDim.z != 1) {
        return hired_emulator::remember(cudaErrorNotSupported);
      }
    } else {
      return hired_emulator::remember(cudaErrorNotSupported);
    }
  }
  std::tuple<Parameters...> values{std::forward<Arguments>(arguments)...};
  return std::apply(
      [&](Parameters&... each) {
        void* addresses[] = {&each..., nullptr};
        return hired_emulator::launch_checked(
            kernel,
            {config->gridDim, config->blockDim, config->dynamicSmemBytes, cluster_size,
             config->stream, nullptr},
            addresses, cooperative);
      },
      values);
}

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value > hired_emulator::device.shared_per_block_optin) {
      return hired_emulator::remember(cudaErrorInvalidValue);
    }
    hired_emulator::shared_limits[reinterpret_cast<const void*>(kernel)] =
        static_cast<size_t>(value);
  }
  return cudaSuccess;
}

template <class... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Parameters...)) {
  if (hired_emulator::load(reinterpret_cast<const void*>(kernel)) != cudaSuccess) {
    return hired_emulator::last_error;
  }
  *attributes = {};
  attributes->binaryVersion = hired_emulator::device.major * 10 + hired_emulator::device.minor;
  attributes->ptxVersion = attributes->binaryVersion;
  attributes->maxThreadsPerBlock = 1024;
  attributes->maxDynamicSharedSizeBytes = hired_emulator::device.shared_per_block;
  return cudaSuccess;
}

template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Parameters...), int,
                                                          size_t) {
  *blocks = hired_emulator::device.blocks_per_multiprocessor;
  return cudaSuccess;
}

// --- devices, memory, streams --------------------------------------------------------------------

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = hired_emulator::device.index + 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* index) {
  *index = hired_emulator::device.index;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int index) {
  if (index < 0) return hired_emulator::remember(cudaErrorInvalidDevice);
  hired_emulator::device.index = index;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const hired_emulator::Device& device = hired_emulator::device;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = device.shared_per_block; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMultiProcessorCount: *value = device.multiprocessors; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = device.threads_per_multiprocessor; break;
    case cudaDevAttrComputeCapabilityMajor: *value = device.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = device.minor; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = device.shared_per_multiprocessor;
      break;
    case cudaDevAttrCooperativeLaunch: *value = 1; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = device.shared_per_block_optin; break;
    case cudaDevAttrClusterLaunch: *value = device.major >= 9; break;
    default: return hired_emulator::remember(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

template <class T>
cudaError_t cudaMalloc(T** p, size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes) != 0) {
    return hired_emulator::remember(cudaErrorMemoryAllocation);
  }
  memset(memory, 0xa5, bytes);  // a device does not clear it either
  *p = static_cast<T*>(memory);
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* p) {
  free(p);
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* p, int value, size_t bytes) {
  memset(p, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t = nullptr) {
  return cudaMemset(p, value, bytes);
}

namespace hired_emulator {

// Handles are used again, ids are not. A handle that was not created here names a stream, too.
struct Streams {
  std::map<cudaStream_t, unsigned long long> ids;
  std::vector<cudaStream_t> destroyed;
  unsigned long long next_id = 1;
};
inline Streams streams;

}  // namespace hired_emulator

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  hired_emulator::Streams& streams = hired_emulator::streams;
  if (streams.destroyed.empty()) {
    *stream = reinterpret_cast<cudaStream_t>(uintptr_t{16} * streams.next_id);
  } else {
    *stream = streams.destroyed.back();
    streams.destroyed.pop_back();
  }
  streams.ids[*stream] = streams.next_id++;
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  hired_emulator::streams.ids.erase(stream);
  hired_emulator::streams.destroyed.push_back(stream);
  return cudaSuccess;
}
inline cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  const auto found = hired_emulator::streams.ids.find(stream);
  *id = found != hired_emulator::streams.ids.end()
            ? found->second
            : reinterpret_cast<unsigned long long>(stream) | 1ull << 63;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
  return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = hired_emulator::device.capture;
  return cudaSuccess;
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  static thread_local cudaStreamCaptureMode current = cudaStreamCaptureModeGlobal;
  std::swap(*mode, current);
  return cudaSuccess;
}
