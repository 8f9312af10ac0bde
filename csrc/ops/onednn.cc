// csrc/ops/onednn.cc
// Optional twice: without its headers this build knows nothing of oneDNN, and without
// its library there is nothing to call. It is opened at run time and never linked, so
// the extension loads wherever it is.
// SPDX-License-Identifier: Apache-2.0
#include "ops/onednn.h"

#include "base/error.h"

#if HALFBYTE_HAVE_ONEDNN
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <oneapi/dnnl/dnnl.h>
#include <algorithm>
#include <atomic>
#include <compare>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/convert.h"
#include "ops/rows.h"
#include "runtime/pages.h"

namespace halfbyte {
namespace {

static_assert(DNNL_VERSION_MAJOR == 3);

[[noreturn]] void Refuse(const std::string& why) {
  throw Error(ErrorClass::kUnsupported, "oneDNN: " + Escape(why, 300));
}

// ---- the library

// A function of an opened library, as whatever type it is assigned to.
struct Symbol {
  Symbol(void* library, const char* name, bool required = true)
      : address(dlsym(library, name)) {
    if (address == nullptr && required) Refuse(std::string("it has no ") + name);
  }
  template <class F>
  operator F*() const {  // NOLINT(google-explicit-constructor)
    return reinterpret_cast<F*>(address);
  }
  void* address;
};

struct Api {
  explicit Api(void* lib)
      : version(Symbol(lib, "dnnl_version")),
        cpu_isa(Symbol(lib, "dnnl_get_effective_cpu_isa")),
        engine_create(Symbol(lib, "dnnl_engine_create")),
        stream_create(Symbol(lib, "dnnl_stream_create")),
        stream_wait(Symbol(lib, "dnnl_stream_wait")),
        stream_destroy(Symbol(lib, "dnnl_stream_destroy")),
        desc_create(Symbol(lib, "dnnl_memory_desc_create_with_strides")),
        desc_size(Symbol(lib, "dnnl_memory_desc_get_size")),
        desc_destroy(Symbol(lib, "dnnl_memory_desc_destroy")),
        memory_create(Symbol(lib, "dnnl_memory_create")),
        memory_destroy(Symbol(lib, "dnnl_memory_destroy")),
        attr_create(Symbol(lib, "dnnl_primitive_attr_create")),
        attr_scratchpad(Symbol(lib, "dnnl_primitive_attr_set_scratchpad_mode")),
        attr_fpmath(Symbol(lib, "dnnl_primitive_attr_set_fpmath_mode")),
        attr_destroy(Symbol(lib, "dnnl_primitive_attr_destroy")),
        matmul(Symbol(lib, "dnnl_matmul_primitive_desc_create")),
        query(Symbol(lib, "dnnl_primitive_desc_query")),
        query_md(Symbol(lib, "dnnl_primitive_desc_query_md")),
        plan_destroy(Symbol(lib, "dnnl_primitive_desc_destroy")),
        primitive_create(Symbol(lib, "dnnl_primitive_create")),
        execute(Symbol(lib, "dnnl_primitive_execute")),
        primitive_destroy(Symbol(lib, "dnnl_primitive_destroy")),
        omp_threads(Symbol(lib, "omp_get_max_threads", false)),
        omp_set_threads(Symbol(lib, "omp_set_num_threads", false)) {}

  decltype(&dnnl_version) version;
  decltype(&dnnl_get_effective_cpu_isa) cpu_isa;
  decltype(&dnnl_engine_create) engine_create;
  decltype(&dnnl_stream_create) stream_create;
  decltype(&dnnl_stream_wait) stream_wait;
  decltype(&dnnl_stream_destroy) stream_destroy;
  decltype(&dnnl_memory_desc_create_with_strides) desc_create;
  decltype(&dnnl_memory_desc_get_size) desc_size;
  decltype(&dnnl_memory_desc_destroy) desc_destroy;
  decltype(&dnnl_memory_create) memory_create;
  decltype(&dnnl_memory_destroy) memory_destroy;
  decltype(&dnnl_primitive_attr_create) attr_create;
  decltype(&dnnl_primitive_attr_set_scratchpad_mode) attr_scratchpad;
  decltype(&dnnl_primitive_attr_set_fpmath_mode) attr_fpmath;
  decltype(&dnnl_primitive_attr_destroy) attr_destroy;
  decltype(&dnnl_matmul_primitive_desc_create) matmul;
  decltype(&dnnl_primitive_desc_query) query;
  decltype(&dnnl_primitive_desc_query_md) query_md;
  decltype(&dnnl_primitive_desc_destroy) plan_destroy;
  decltype(&dnnl_primitive_create) primitive_create;
  decltype(&dnnl_primitive_execute) execute;
  decltype(&dnnl_primitive_destroy) primitive_destroy;
  int (*omp_threads)();  // of the OpenMP library that oneDNN itself is linked to
  void (*omp_set_threads)(int);
};

template <class T>
using Handle = std::unique_ptr<T, dnnl_status_t (*)(T*)>;

struct Library {
  Library(void* lib, std::string file) : api(lib), path(std::move(file)) {
    if (api.engine_create(&engine, dnnl_cpu, 0) != dnnl_success) {
      Refuse("it has no engine for this CPU");
    }
    constexpr unsigned kBf16 = dnnl_cpu_isa_avx512_core_bf16;
    bf16 = (static_cast<unsigned>(api.cpu_isa()) & kBf16) == kBf16;
  }

  const Api api;
  const std::string path;
  dnnl_engine_t engine = nullptr;
  bool bf16 = false;  // products of bfloat16 in hardware: AVX512_BF16, AMX
};

std::string VersionOf(const dnnl_version_t& v) {
  return std::to_string(v.major) + "." + std::to_string(v.minor) + "." +
         std::to_string(v.patch);
}

// `lib`'s major version and threads, before anything else of it is trusted.
void CheckVersion(void* lib) {
  const decltype(&dnnl_version) version = Symbol(lib, "dnnl_version");
  const dnnl_version_t& v = *version();
  if (v.major != 3) Refuse("expected version 3, found " + VersionOf(v));
  const bool openmp = v.cpu_runtime == DNNL_RUNTIME_OMP;
  if (!openmp && v.cpu_runtime != DNNL_RUNTIME_SEQ) {
    Refuse("expected a build with OpenMP's threads or none");
  }
  if (openmp) {
    Symbol(lib, "omp_get_max_threads");
    Symbol(lib, "omp_set_num_threads");
  }
}

// ---- one product of the library

// Keeps OpenMP to the calling thread: our pool's threads are the ones that compute.
class OneThread {
 public:
  explicit OneThread(const Api& api)
      : api_(api), before_(api.omp_threads == nullptr ? 1 : api.omp_threads()) {
    Set(1);
  }
  ~OneThread() { Set(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  void Set(int n) const {
    if (before_ != 1) api_.omp_set_threads(n);
  }

  const Api& api_;
  const int before_;
};

// y[M, N] = x[M, K] W[N, K]^T, all of them without gaps.
struct Shape {
  size_t M, N, K;
  dnnl_data_type_t type;  // of x and W; y is f32

  auto operator<=>(const Shape&) const = default;
};

struct Primitive {
  Handle<dnnl_primitive_desc> plan;
  Handle<dnnl_primitive> run;
};

Handle<dnnl_memory_desc> Describe(const Api& api, size_t rows, size_t cols,
                                  dnnl_data_type_t type, bool transposed) {
  const auto r = static_cast<dnnl_dim_t>(rows), c = static_cast<dnnl_dim_t>(cols);
  const dnnl_dims_t dims = {r, c};
  const dnnl_dims_t strides = {transposed ? 1 : c, transposed ? r : 1};
  dnnl_memory_desc_t desc = nullptr;
  api.desc_create(&desc, 2, dims, type, strides);
  return {desc, api.desc_destroy};
}

// Null where the library would not do it, or only with its reference loops, which take
// seconds. W keeps its plain rows: a copy in the layout that the library likes best is
// 1.05 times as fast with 512 tokens, 1.27 times with 32, and would double the weights.
std::shared_ptr<const Primitive> Make(const Library& library, const Shape& s) {
  const Api& api = library.api;
  const OneThread one(api);  // it plans for the threads that it sees
  dnnl_primitive_attr_t made = nullptr;
  api.attr_create(&made);
  const Handle<dnnl_primitive_attr> attr(made, api.attr_destroy);
  // Its own scratchpad belongs to the thread that made the primitive; ours to the call.
  api.attr_scratchpad(made, dnnl_scratchpad_mode_user);
  // An environment variable of the library may allow f32 to be rounded. We do not.
  api.attr_fpmath(made, dnnl_fpmath_mode_strict);
  const auto x = Describe(api, s.M, s.K, s.type, false);
  const auto w = Describe(api, s.K, s.N, s.type, true);
  const auto y = Describe(api, s.M, s.N, dnnl_f32, false);
  dnnl_primitive_desc_t plan = nullptr;
  if (api.matmul(&plan, library.engine, x.get(), w.get(), nullptr, y.get(), made) !=
      dnnl_success) {
    return nullptr;
  }
  Handle<dnnl_primitive_desc> owned(plan, api.plan_destroy);
  const char* name = nullptr;
  if (api.query(plan, dnnl_query_impl_info_str, 0, &name) != dnnl_success ||
      std::string_view(name).find("ref") != std::string_view::npos) {
    return nullptr;
  }
  dnnl_primitive_t run = nullptr;
  if (api.primitive_create(&run, plan) != dnnl_success) return nullptr;
  return std::make_shared<const Primitive>(
      Primitive{std::move(owned), {run, api.primitive_destroy}});
}

size_t ScratchBytes(const Api& api, const Primitive& p) {
  return api.desc_size(api.query_md(p.plan.get(), dnnl_query_scratchpad_md, 0));
}

// `scratch`: ScratchBytes(…) of it.
bool Execute(const Library& library, const Primitive& p, const void* x, const void* w,
             float* y, void* scratch) {
  const Api& api = library.api;
  const OneThread one(api);
  const auto memory = [&](dnnl_query_t which, const void* data) {
    dnnl_memory_t made = nullptr;
    api.memory_create(&made, api.query_md(p.plan.get(), which, 0), library.engine,
                      const_cast<void*>(data));
    return Handle<dnnl_memory>(made, api.memory_destroy);
  };
  const auto xm = memory(dnnl_query_src_md, x), wm = memory(dnnl_query_weights_md, w),
             ym = memory(dnnl_query_dst_md, y),
             sm = memory(dnnl_query_scratchpad_md, scratch);
  const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, xm.get()},
                                  {DNNL_ARG_WEIGHTS, wm.get()},
                                  {DNNL_ARG_DST, ym.get()},
                                  {DNNL_ARG_SCRATCHPAD, sm.get()}};
  dnnl_stream_t made = nullptr;
  api.stream_create(&made, library.engine, dnnl_stream_default_flags);
  const Handle<dnnl_stream> stream(made, api.stream_destroy);
  return api.execute(p.run.get(), made, 4, args) == dnnl_success &&
         api.stream_wait(made) == dnnl_success;
}

// ---- the state of the process

struct State;
State& Global();

struct State {
  // A fork waits for whoever holds the lock: a thread that the child would not have.
  State() {
    const auto unlock = [] { Global().mutex.unlock(); };
    pthread_atfork([] { Global().mutex.lock(); }, unlock, unlock);
  }

  std::mutex mutex;                        // guards all but `active`
  std::unique_ptr<const Library> library;  // opened once, for good
  std::map<Shape, std::shared_ptr<const Primitive>> primitives;
  std::atomic<const Library*> active{nullptr};
};

State& Global() {
  static State* const state = new State;  // threads may outlive static objects
  return *state;
}

// From the cache, which starts over when it is full: a model needs a handful a length
// of prompt, and making one takes a fifth of a millisecond. It is made under the lock,
// since the library has locks of its own for that, which no fork may find taken either.
std::shared_ptr<const Primitive> PrimitiveFor(const Library& library, const Shape& s) {
  constexpr size_t kMost = 64;
  State& state = Global();
  const std::lock_guard lock(state.mutex);
  if (const auto it = state.primitives.find(s); it != state.primitives.end()) {
    return it->second;
  }
  if (state.primitives.size() >= kMost) state.primitives.clear();
  return state.primitives[s] = Make(library, s);
}

// ---- a product in pieces

// Below, it spends more time on rearranging W than our own kernels take for all of it:
// with F32 and 2048 x 2048, 0.87 times our speed at 32 tokens, 1.03 at 64, 1.2 at 256.
// With BF16 it is 1.4 and 1.9 at 32 and 256.
constexpr size_t kMinTokensF32 = 64, kMinTokensBF16 = 32;
// Pieces are the same for any number of threads, and so are the bits. Fewer tokens
// would rearrange each row of W more often; more rows are no faster and share out
// worse.
constexpr size_t kTokens = 256, kRows = 64;

// [0, length), in parts of `step` and a last one that may be shorter.
struct Parts {
  Parts(size_t len, size_t s) : length(len), step(s), count((len + s - 1) / s) {}

  size_t Begin(size_t i) const { return i * step; }
  size_t Size(size_t i) const { return std::min(step, length - Begin(i)); }
  const size_t length, step, count;
};

// 300 tokens are twice 150, not 256 and 44.
Parts PartsOfTokens(size_t tokens) {
  const size_t count = (tokens + kTokens - 1) / kTokens;
  return {tokens, (tokens + count - 1) / count};
}

bool Suits(const Library& library, const LinearInput& x, const WeightView& w) {
  const size_t align = w.format == Format::kF32 ? sizeof(float) : sizeof(uint16_t);
  const bool bf16 =
      w.format == Format::kBF16 && library.bf16 && x.mode() != ActivationMode::kF32;
  return (w.format == Format::kF32 || bf16) &&
         x.x().rows >= (bf16 ? kMinTokensBF16 : kMinTokensF32) && w.K != 0 &&
         reinterpret_cast<uintptr_t>(w.data) % align == 0;
}

// The rows of x one behind the other, in the type of W: the library's good kernels take
// no other. `copy` holds them unless x is like that already.
const uint8_t* DenseInput(const LinearInput& in, bool bf16,
                          std::vector<uint8_t>& copy) {
  const Mat<const float> x = in.x();
  if (!bf16 && x.ld == x.cols) return reinterpret_cast<const uint8_t*>(x.data);
  const size_t row_bytes = x.cols * (bf16 ? sizeof(uint16_t) : sizeof(float));
  copy.resize(x.rows * row_bytes);
  ForEachRow(in.context(), x.rows, x.cols, [&](size_t m) {
    uint8_t* row = &copy[m * row_bytes];
    if (bf16) {
      ConvertF32ToBF16(x.Row(m), x.cols, row);
    } else {
      memcpy(row, x.Row(m), row_bytes);
    }
  });
  return copy.data();
}

// One piece: the tokens `x` by the rows of W from `w`. Where y has gaps between its
// rows, the library would take slower kernels.
bool Multiply(const Library& library, const Primitive& p, const void* x, const void* w,
              Mat<float> y) {
  constexpr size_t kAlign = 64;
  const size_t bytes = (y.rows * y.cols * sizeof(float) + kAlign - 1) / kAlign * kAlign;
  uint8_t* memory = ThreadScratch(bytes + ScratchBytes(library.api, p));
  auto* out = reinterpret_cast<float*>(memory);
  if (!Execute(library, p, x, w, out, memory + bytes)) return false;
  for (size_t m = 0; m < y.rows; ++m) {
    memcpy(y.Row(m), out + m * y.cols, y.cols * sizeof(float));
  }
  return true;
}

}  // namespace

void OpenOnednn(const std::string& path) {
  State& state = Global();
  const std::lock_guard lock(state.mutex);
  if (state.library != nullptr) return;
  const auto close = [](void* lib) { dlclose(lib); };
  std::unique_ptr<void, decltype(close)> lib(
      dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL), close);
  if (lib == nullptr) Refuse(dlerror());
  CheckVersion(lib.get());
  Dl_info info = {};
  const bool named = dladdr(dlsym(lib.get(), "dnnl_version"), &info) != 0;
  state.library =
      std::make_unique<const Library>(lib.get(), named ? info.dli_fname : path);
  lib.release();
}

std::optional<OnednnStatus> OnednnState() {
  State& state = Global();
  const std::lock_guard lock(state.mutex);
  if (state.library == nullptr) return std::nullopt;
  return OnednnStatus{VersionOf(*state.library->api.version()), state.library->path,
                      state.active != nullptr};
}

void UseOnednn(bool on) {
  State& state = Global();
  const std::lock_guard lock(state.mutex);
  state.active = on ? state.library.get() : nullptr;
}

bool OnednnLinear(const LinearInput& x, const WeightView& w, Mat<float> y) {
  const Library* library = Global().active;
  if (library == nullptr || !Suits(*library, x, w)) return false;
  const Parts tokens = PartsOfTokens(y.rows), rows(w.N, kRows);
  const bool bf16 = w.format == Format::kBF16;
  // Of each dimension the first part and the last, which may be shorter.
  std::shared_ptr<const Primitive> primitives[2][2];
  for (const size_t i : {0, 1}) {
    for (const size_t j : {0, 1}) {
      const Shape shape = {tokens.Size(i * (tokens.count - 1)),
                           rows.Size(j * (rows.count - 1)), w.K,
                           bf16 ? dnnl_bf16 : dnnl_f32};
      primitives[i][j] = PrimitiveFor(*library, shape);
      if (primitives[i][j] == nullptr) return false;
    }
  }
  std::vector<uint8_t> copy;
  const uint8_t* in = DenseInput(x, bf16, copy);
  std::atomic<bool> failed{false};
  x.context().ParallelFor(tokens.count * rows.count, [&](size_t task) {
    const size_t i = task % tokens.count, j = task / tokens.count;
    const auto& p = primitives[i + 1 == tokens.count][j + 1 == rows.count];
    const size_t m = tokens.Begin(i), n = rows.Begin(j);
    const Mat<float> piece(y.Row(m) + n, tokens.Size(i), rows.Size(j), y.ld);
    const uint8_t* w_rows = w.data + n * w.row_bytes();
    if (!Multiply(*library, *p, in + m * w.row_bytes(), w_rows, piece)) failed = true;
  });
  return !failed;
}

}  // namespace halfbyte

#else   // without oneDNN's headers

namespace halfbyte {

void OpenOnednn(const std::string& /*path*/) {
  throw Error(ErrorClass::kUnsupported,
              "oneDNN: this build was made without its headers");
}
std::optional<OnednnStatus> OnednnState() { return std::nullopt; }
void UseOnednn(bool /*on*/) {}
bool OnednnLinear(const LinearInput& /*x*/, const WeightView& /*w*/, Mat<float> /*y*/) {
  return false;
}

}  // namespace halfbyte
#endif  // HALFBYTE_HAVE_ONEDNN
