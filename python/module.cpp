// SPDX-License-Identifier: Apache-2.0
//
// hired_kernels._C: what was built, and csrc's integer arithmetic for callers in Python. It knows
// nothing of torch; the operators live in the library beside it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "cpu_isa.h"
#include "lanes.h"
#include "phases/allocate.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = HIRED_VERSION;
  info["compiler"] = HIRED_COMPILER;
  info["torch_target"] = HIRED_TORCH_TARGET;
  info["sanitizers"] = HIRED_SANITIZERS;
  info["cuda_archs"] = py::make_tuple(HIRED_CUDA_ARCHS);  // of machine code: 61, 90
  info["cuda_ptx"] = py::make_tuple(HIRED_CUDA_PTX);      // of PTX, for GPUs from these on
  info["cuda_compiler"] = HIRED_CUDA_COMPILER;
  info["cuda_why_none"] = HIRED_CUDA_WHY_NONE;  // empty where there is some
#ifdef HIRED_SPIN_LIMIT
  info["spin_limit"] = HIRED_SPIN_LIMIT;
#else
  info["spin_limit"] = py::none();  // waits between blocks have no limit
#endif
  info["isas"] = hired::cpu_isas();
  info["isa"] = hired::cpu_isa();
  return info;
}

// One dict a picture: what make_plan works out.
py::list plan(const std::vector<int64_t>& grids, const std::vector<int64_t>& budgets, double alpha,
              const std::optional<std::vector<int64_t>>& crops, const std::string& policy,
              const std::string& order, int64_t P, int64_t T, int64_t merge) {
  hired::Plan plan;
  const hired::Status status = hired::make_plan(
      {grids, budgets, alpha, crops, policy, order, merge}, P, T, hired::kCpuLimits, &plan);
  if (!status.ok()) throw py::value_error("hired: " + status.message());
  py::list pictures;
  for (const hired::Picture& picture : plan.pictures) {
    py::dict entry;
    entry["first_partition"] = picture.first_partition;
    entry["first_row"] = picture.first_row;
    entry["output_rows"] = picture.output_rows;
    entry["full_budget"] = picture.full_budget;
    entry["rest"] = picture.rest;
    pictures.append(entry);
  }
  return pictures;
}

std::vector<int32_t> share_out(int64_t rest, const std::vector<uint32_t>& weights,
                               const std::vector<int32_t>& capacities) {
  int64_t sum = 0;
  for (const int32_t capacity : capacities) {
    if (capacity < 0) throw py::value_error("hired: capacities: expected numbers of at least 0");
    sum += capacity;
  }
  if (weights.size() != capacities.size() || rest < 0 || rest > sum) {
    throw py::value_error(
        "hired: rest: expected at most the sum of one capacity for each weight, got " +
        std::to_string(rest));
  }
  std::vector<int32_t> shares(weights.size());
  std::vector<int64_t> remainders(weights.size());
  hired::share_out(hired::SerialGroup(), rest, static_cast<int32_t>(weights.size()), weights.data(),
                   capacities.data(), shares.data(), remainders.data());
  return shares;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "What was built, and the host arithmetic of csrc.";
  m.def("build_info", &build_info,
        "Version, compiler, CUDA architectures, CPU instruction sets of this build.");
  m.def("plan", &plan, py::arg("grids"), py::arg("budgets"), py::arg("alpha"), py::arg("crops"),
        py::arg("policy"), py::arg("order"), py::arg("partitions"), py::arg("tokens"),
        py::arg("merge") = 1,
        "What each picture owns and how its budget parts, from the operators' integer arguments.");
  m.def("share_out", &share_out, py::arg("rest"), py::arg("weights"), py::arg("capacities"),
        "Largest remainder under capacity: how `rest` tokens part among sub-images.");
}
