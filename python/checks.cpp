// SPDX-License-Identifier: Apache-2.0
#include "checks.h"

#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <stdexcept>

namespace hired {
namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;

// Raises for one operator.
class Refusal {
 public:
  explicit Refusal(const char* op) : op_(op) {}

  [[noreturn]] void operator()(const Status& status) const {
    throw std::runtime_error(std::string("hired::") + op_ + ": " + status.message());
  }
  [[noreturn]] void operator()(const char* argument, const std::string& expected,
                               const std::string& got) const {
    (*this)(Status::Refused(argument, expected, got));
  }

 private:
  const char* op_;
};

std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::UInt16: return "uint16";
    case ScalarType::UInt32: return "uint32";
    case ScalarType::UInt64: return "uint64";
    case ScalarType::Half: return "float16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::ComplexHalf: return "complex32";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    case ScalarType::Bool: return "bool";
    case ScalarType::Float8_e5m2: return "float8_e5m2";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    case ScalarType::Float8_e5m2fnuz: return "float8_e5m2fnuz";
    case ScalarType::Float8_e4m3fnuz: return "float8_e4m3fnuz";
    case ScalarType::Float8_e8m0fnu: return "float8_e8m0fnu";
    default: return "dtype " + std::to_string(static_cast<int>(dtype));
  }
}

bool is_floating(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
    case ScalarType::Float:
    case ScalarType::Double:
    case ScalarType::BFloat16:
    case ScalarType::Float8_e5m2:
    case ScalarType::Float8_e4m3fn:
    case ScalarType::Float8_e5m2fnuz:
    case ScalarType::Float8_e4m3fnuz:
    case ScalarType::Float8_e8m0fnu: return true;
    default: return false;
  }
}

std::optional<Dtype> score_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::Half: return Dtype::kFloat16;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    default: return std::nullopt;
  }
}

std::string device_name(const Tensor& tensor) {
  const auto device = tensor.device();
  const auto index = device.index() < 0 ? "" : ":" + std::to_string(device.index());
  switch (device.type()) {
    case DeviceType::CPU: return "cpu" + index;
    case DeviceType::CUDA: return "cuda" + index;
    case DeviceType::Meta: return "meta" + index;
    default: return "device type " + std::to_string(static_cast<int>(device.type())) + index;
  }
}

std::string shape_text(std::initializer_list<std::string> sizes) {
  std::string text = "(";
  for (const std::string& size : sizes) text += (text.size() > 1 ? ", " : "") + size;
  return text + ")";
}

std::string number(int64_t value) {
  return std::to_string(value);
}

std::string shape_text(const Tensor& tensor) {
  std::string text = "(";
  for (const int64_t size : tensor.sizes()) text += (text.size() > 1 ? ", " : "") + number(size);
  return text + ")";
}

// Whether the tensor's sizes are those given; a negative one stands for any.
bool has_shape(const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  size_t i = 0;
  for (const int64_t size : sizes) {
    if (size >= 0 && tensor.size(static_cast<int64_t>(i)) != size) return false;
    ++i;
  }
  return true;
}

void check_unit_stride(const Refusal& refuse, const char* name, const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (tensor.size(last) > 1 && tensor.stride(last) != 1) {
    refuse(name, "a unit stride in the last dimension", number(tensor.stride(last)));
  }
}

void check_features(const Refusal& refuse, const Tensor& features) {
  if (features.dim() != 3) {
    refuse("features", "rank 3 (P, T, D)", "rank " + number(features.dim()));
  }
  if (!is_floating(features.scalar_type())) {
    refuse("features", "a floating dtype", dtype_name(features.scalar_type()));
  }
  check_unit_stride(refuse, "features", features);
}

// `first`, the operator's first argument, says the device.
void check_score_tensor(const Refusal& refuse, const char* name, const Tensor& tensor,
                        const char* first_name, const Tensor& first, int64_t rank,
                        const char* letters) {
  if (tensor.dim() != rank) {
    refuse(name, "rank " + number(rank) + " " + letters, "rank " + number(tensor.dim()));
  }
  if (!score_dtype(tensor.scalar_type())) {
    refuse(name, "float32, float16 or bfloat16", dtype_name(tensor.scalar_type()));
  }
  if (device_name(tensor) != device_name(first)) {
    refuse(name, std::string("the device of ") + first_name + " (" + device_name(first) + ")",
           device_name(tensor));
  }
}

void check_same_dtype(const Refusal& refuse, const char* name, const Tensor& tensor,
                      const char* other_name, const Tensor& other) {
  if (tensor.scalar_type() != other.scalar_type()) {
    refuse(name,
           std::string("the dtype of ") + other_name + " (" + dtype_name(other.scalar_type()) + ")",
           dtype_name(tensor.scalar_type()));
  }
}

void check_size(const Refusal& refuse, int64_t P, const char* argument, const char* letter,
                int64_t size) {
  if (P > 0 && size < 1) {
    refuse(argument, std::string(letter) + " >= 1", letter + (" = " + number(size)));
  }
}

void check_limit(const Refusal& refuse, const Limits& limits, const char* argument,
                 const char* letter, int64_t size, int64_t limit) {
  if (size > limit) {
    refuse(argument,
           std::string(letter) + " <= " + number(limit) + " on the " + limits.backend + " backend",
           letter + (" = " + number(size)));
  }
}

void check_scale(const Refusal& refuse, std::optional<double> scale) {
  if (!scale || std::isfinite(*scale)) return;
  const char* infinite = *scale > 0 ? "inf" : "-inf";
  refuse("scale", "a finite number", std::isnan(*scale) ? "nan" : infinite);
}

float scale_or_default(std::optional<double> scale, int64_t Dh) {
  return static_cast<float>(scale ? *scale : 1.0 / std::sqrt(static_cast<double>(Dh)));
}

QueriesKeys queries_keys(const Tensor& query, const Tensor& key) {
  const bool many = query.dim() == 4;  // (P, Q, H, Dh), else (P, H, Dh)
  return {query.const_data_ptr(), key.const_data_ptr(),
          query.size(0),          many ? query.size(1) : 1,
          query.stride(0),        many ? query.stride(1) : 0,
          query.stride(many + 1), key.stride(0),
          key.stride(1),          key.stride(2)};
}

// Checks the integers and sets what the calls that select have in common.
void begin_call(const Refusal& refuse, const Tensor& features, ScalarType dtype, int64_t H,
                const Integers& integers, const Limits& limits, Plan* plan, Call* call) {
  const int64_t P = features.size(0);
  if (Status status = make_plan(integers, P, features.size(1), limits, plan); !status.ok()) {
    refuse(status);
  }
  const auto element = static_cast<int64_t>(features.element_size());
  call->plan = plan;
  call->P = P;
  call->dtype = *score_dtype(dtype);
  call->H = H;
  call->features = {features.const_data_ptr(), features.stride(0) * element,
                    features.stride(1) * element, features.size(2) * element};
}

}  // namespace

void check_select(const Tensor& features, const Tensor& attn_init, const Tensor& attn_final,
                  const Integers& integers, const Limits& limits, Plan* plan, SelectCall* call) {
  const Refusal refuse("select");
  check_features(refuse, features);
  const int64_t P = features.size(0), T = features.size(1);
  check_score_tensor(refuse, "attn_final", attn_final, "features", features, 3, "(P, H, T)");
  const int64_t H = attn_final.size(1);
  if (!has_shape(attn_final, {P, -1, T})) {
    refuse("attn_final", "shape " + shape_text({number(P), "H", number(T)}),
           shape_text(attn_final));
  }
  check_score_tensor(refuse, "attn_init", attn_init, "features", features, 3, "(P, H, T)");
  check_same_dtype(refuse, "attn_init", attn_init, "attn_final", attn_final);
  check_size(refuse, P, "features", "T", T);
  check_size(refuse, P, "attn_final", "H", H);
  begin_call(refuse, features, attn_final.scalar_type(), H, integers, limits, plan, call);
  const auto B = static_cast<int64_t>(plan->pictures.size());
  if (!has_shape(attn_init, {P, H, T}) && !has_shape(attn_init, {B, H, T})) {
    refuse("attn_init",
           "shape " + shape_text({number(P), number(H), number(T)}) + " or " +
               shape_text({number(B), number(H), number(T)}),
           shape_text(attn_init));
  }
  check_limit(refuse, limits, "attn_final", "H", H, limits.heads);
  call->init = {attn_init.const_data_ptr(), attn_init.size(0), attn_init.stride(0),
                attn_init.stride(1), attn_init.stride(2)};
  call->final = {attn_final.const_data_ptr(), attn_final.size(0), attn_final.stride(0),
                 attn_final.stride(1), attn_final.stride(2)};
}

void check_select_qk(const Tensor& features, const Tensor& query_init, const Tensor& key_init,
                     const Tensor& query_final, const Tensor& key_final, const Integers& integers,
                     std::optional<double> scale, const Limits& limits, Plan* plan,
                     SelectQkCall* call) {
  const Refusal refuse("select_qk");
  check_features(refuse, features);
  const int64_t P = features.size(0), T = features.size(1);
  check_score_tensor(refuse, "query_final", query_final, "features", features,
                     query_final.dim() == 4 ? 4 : 3, "(P, H, Dh)");
  const int64_t last = query_final.dim() - 1;
  const int64_t H = query_final.size(last - 1), Dh = query_final.size(last);
  if (query_final.size(0) != P) {
    refuse("query_final", "shape " + shape_text({number(P), "H", "Dh"}), shape_text(query_final));
  }
  check_score_tensor(refuse, "key_final", key_final, "features", features, 4, "(P, N, H, Dh)");
  const int64_t N = key_final.size(1);
  if (!has_shape(key_final, {P, -1, H, Dh})) {
    refuse("key_final", "shape " + shape_text({number(P), "N", number(H), number(Dh)}),
           shape_text(key_final));
  }
  if (N < T) refuse("key_final", "N >= T = " + number(T), "N = " + number(N));
  check_score_tensor(refuse, "query_init", query_init, "features", features,
                     query_init.dim() == 4 ? 4 : 3, "(P, H, Dh)");
  check_score_tensor(refuse, "key_init", key_init, "features", features, 4, "(P, N, H, Dh)");
  check_same_dtype(refuse, "key_final", key_final, "query_final", query_final);
  check_same_dtype(refuse, "query_init", query_init, "query_final", query_final);
  check_same_dtype(refuse, "key_init", key_init, "query_final", query_final);
  check_unit_stride(refuse, "query_final", query_final);
  check_unit_stride(refuse, "key_final", key_final);
  check_unit_stride(refuse, "query_init", query_init);
  check_unit_stride(refuse, "key_init", key_init);
  check_size(refuse, P, "features", "T", T);
  check_size(refuse, P, "query_final", "H", H);
  check_size(refuse, P, "query_final", "Dh", Dh);
  check_scale(refuse, scale);
  begin_call(refuse, features, query_final.scalar_type(), H, integers, limits, plan, call);
  const auto B = static_cast<int64_t>(plan->pictures.size());
  if (query_init.dim() == 4
          ? !has_shape(query_init, {P, -1, H, Dh}) && !has_shape(query_init, {B, -1, H, Dh})
          : !has_shape(query_init, {P, H, Dh}) && !has_shape(query_init, {B, H, Dh})) {
    refuse("query_init",
           "shape " + shape_text({number(P), number(H), number(Dh)}) + " or " +
               shape_text({number(B), number(H), number(Dh)}),
           shape_text(query_init));
  }
  const int64_t rows = query_init.size(0);
  if (!has_shape(key_init, {rows, N, H, Dh})) {
    refuse("key_init", "shape " + shape_text({number(rows), number(N), number(H), number(Dh)}),
           shape_text(key_init));
  }
  check_limit(refuse, limits, "query_final", "H", H, limits.heads);
  check_limit(refuse, limits, "query_final", "Dh", Dh, limits.head_width);
  check_limit(refuse, limits, "key_final", "N", N, limits.keys);
  call->N = N;
  call->Dh = Dh;
  call->scale = scale_or_default(scale, Dh);
  call->init = queries_keys(query_init, key_init);
  call->final = queries_keys(query_final, key_final);
}

void check_cls_attention(const Tensor& query, const Tensor& key, int64_t tokens,
                         std::optional<double> scale, const Limits& limits,
                         ClsAttentionCall* call) {
  const Refusal refuse("cls_attention");
  check_score_tensor(refuse, "query", query, "query", query, query.dim() == 4 ? 4 : 3,
                     "(P, H, Dh)");
  const int64_t last = query.dim() - 1;
  const int64_t P = query.size(0), H = query.size(last - 1), Dh = query.size(last);
  check_score_tensor(refuse, "key", key, "query", query, 4, "(P, N, H, Dh)");
  const int64_t N = key.size(1);
  if (!has_shape(key, {P, -1, H, Dh})) {
    refuse("key", "shape " + shape_text({number(P), "N", number(H), number(Dh)}), shape_text(key));
  }
  check_same_dtype(refuse, "key", key, "query", query);
  check_unit_stride(refuse, "query", query);
  check_unit_stride(refuse, "key", key);
  check_size(refuse, P, "query", "H", H);
  check_size(refuse, P, "query", "Dh", Dh);
  if (tokens < 1 || tokens > N) {
    refuse("tokens", "1 <= T <= N = " + number(N), "T = " + number(tokens));
  }
  check_scale(refuse, scale);
  check_limit(refuse, limits, "query", "P", P, limits.partitions);
  check_limit(refuse, limits, "query", "H", H, limits.heads);
  check_limit(refuse, limits, "query", "Dh", Dh, limits.head_width);
  check_limit(refuse, limits, "key", "N", N, limits.keys);
  check_limit(refuse, limits, "tokens", "T", tokens, limits.tokens);
  call->P = P;
  call->T = tokens;
  call->dtype = *score_dtype(query.scalar_type());
  call->heads = {H, N, Dh, scale_or_default(scale, Dh)};
  call->layer = queries_keys(query, key);
}

}  // namespace hired
