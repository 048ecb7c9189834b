// SPDX-License-Identifier: Apache-2.0
//
// Launches of up to kLargeBatch pictures. Their parameters outgrow the 4 KB of sm_61, so this file
// is compiled for sm_70 and later alone.
#include <map>
#include <mutex>

#include "select_launch.cuh"

namespace hired {

bool has_large(int device) {
  static std::mutex mutex;
  static std::map<int, bool> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  int major = 0;
  cudaFuncAttributes attributes;
  const bool has =
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
      major >= 7 &&
      cudaFuncGetAttributes(&attributes, select_kernel<float, false, kLargeBatch>) == cudaSuccess;
#ifndef HIRED_EMULATE  // whose device changes under the test
  known[device] = has;
#endif
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
