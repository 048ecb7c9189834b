// SPDX-License-Identifier: Apache-2.0
//
// Launches of up to kLargeBatch pictures. Their parameters outgrow the 4 KB of sm_61, so this file
// is compiled for sm_70 and later alone.
#include "kernel_code.h"
#include "select_launch.cuh"

namespace hired {

bool load_large_kernels(int device) {
  int major = 0;
  const cudaError_t error =
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess && major < 7) return false;
  const bool has = error == cudaSuccess && load_select<kLargeBatch>("features", device).ok();
  if (!has) static_cast<void>(cudaGetLastError());  // asked and answered
  return has;
}

Status launch_large(const SelectCall& call, const DeviceWorkspace& workspace,
                    const CudaPlace& place) {
  return launch_all<kLargeBatch>(call, workspace, place);
}

Status launch_large(const SelectQkCall& call, const DeviceWorkspace& workspace,
                    const CudaPlace& place) {
  return launch_all<kLargeBatch>(call, workspace, place);
}

}  // namespace hired
