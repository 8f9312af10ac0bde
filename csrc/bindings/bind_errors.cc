// csrc/bindings/bind_errors.cc
// C++ errors become the Python exceptions of halfbyte.errors.
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>

#include <exception>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "base/error.h"
#include "bindings/bindings.h"

namespace py = pybind11;

namespace halfbyte {
namespace {

py::object TextOrNone(const std::string& s) {
  return s.empty() ? py::object(py::none()) : py::object(FsText(s));
}

template <class T>
py::object OrNone(const std::optional<T>& value) {
  return value ? py::cast(*value) : py::object(py::none());
}

// What to do about it, where nobody who knew more has said so.
Error OutOfMemory(ErrorInfo info) {
  if (info.hint.empty()) {
    info.hint =
        "a smaller context, kv=\"int8\", repack=\"never\" or load=\"mmap\" take less";
  }
  return Error(ErrorClass::kOutOfMemory, std::move(info));
}

void SetError(const Error& e) {
  const ErrorInfo& i = e.info();
  if (e.cls() == ErrorClass::kOs) {
    // OSError picks FileNotFoundError, PermissionError, … by errno.
    const py::object error = py::reinterpret_borrow<py::object>(PyExc_OSError)(
        i.os_errno, FsText(i.subject), FsText(i.path));
    PyErr_SetObject(py::type::handle_of(error).ptr(), error.ptr());
    return;
  }
  const py::module_ errors = py::module_::import("halfbyte.errors");
  const py::object type = errors.attr(NameOf(e.cls()));
  py::dict fields;
  fields["path"] = TextOrNone(i.path);
  fields["kind"] = TextOrNone(i.kind);
  fields["code"] = TextOrNone(i.code);
  fields["offset"] = OrNone(i.offset);
  fields["tensor"] = TextOrNone(i.tensor);
  fields["key"] = TextOrNone(i.key);
  fields["index"] = OrNone(i.index);
  fields["found"] = TextOrNone(i.found);
  fields["expected"] = TextOrNone(i.expected);
  fields["requested_bytes"] = i.requested_bytes;
  const py::object error = type(FsText(e.what()), **fields);
  PyErr_SetObject(type.ptr(), error.ptr());
}

}  // namespace

py::str FsText(const std::string& bytes) {
  return py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(
      bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "surrogateescape"));
}

void RegisterErrors() {
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const Error& e) {
      SetError(e.cls() == ErrorClass::kOutOfMemory ? OutOfMemory(e.info()) : e);
    } catch (const std::bad_alloc&) {
      ErrorInfo info;
      info.code = "OUT_OF_MEMORY";
      info.subject = "memory: an allocation failed";
      SetError(OutOfMemory(std::move(info)));
    }
  });
}

}  // namespace halfbyte
