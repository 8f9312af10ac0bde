// csrc/bindings/bindings.h
// One function a file of this room, and what they share.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_BINDINGS_BINDINGS_H_
#define HALFBYTE_BINDINGS_BINDINGS_H_

#include <pybind11/pybind11.h>
#include <stddef.h>
#include <stdint.h>

#include <map>
#include <memory>
#include <string>

#include "io/limits.h"
#include "model/model.h"
#include "runtime/thread_pool.h"

namespace halfbyte {

void RegisterErrors();
void RegisterOps(pybind11::module_& m);
void RegisterWeight(pybind11::module_& m);
void RegisterFiles(pybind11::module_& m);
void RegisterModel(pybind11::module_& m);
void RegisterStages(pybind11::module_& m);
void RegisterRoof(pybind11::module_& m);

// A model as Python holds it: pybind11 keeps no pointers to const.
struct ModelHandle {
  std::shared_ptr<const Model> model;
};

// Text from the operating system, as Python's own file functions give it: bytes that
// are not UTF-8 become surrogates.
pybind11::str FsText(const std::string& bytes);

// What `load` and `limits` of Python say: "mmap", "copy" or "auto"; limits by their
// names in FileLimits.
LoadMode AsLoadMode(const std::string& name);
FileLimits AsLimits(const std::map<std::string, uint64_t>& limits);

// A context whose poll asks Python for pending signals, at most every 50 ms, so that
// Ctrl-C ends a long call. Make it with the GIL held; use it without.
Context MakeContext(size_t num_threads);

}  // namespace halfbyte
#endif  // HALFBYTE_BINDINGS_BINDINGS_H_
