# HALFBYTE_ONEDNN_INCLUDE: the folder of oneDNN's headers, version 3, or nothing. Only the
# headers are needed: the library is opened at run time (csrc/ops/onednn.cc).
set(HALFBYTE_ONEDNN AUTO CACHE STRING "oneDNN: AUTO (if its headers are there), ON or OFF")
set(HALFBYTE_ONEDNN_INCLUDE "")
if(NOT HALFBYTE_ONEDNN OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  return()  # elsewhere it is unchecked: other implementations, other threads
endif()

# Where the wheel onednn-devel-cpu-gomp has put the header, if the build has that wheel.
set(wheel "")
find_package(Python QUIET COMPONENTS Interpreter)
if(Python_Interpreter_FOUND)
  execute_process(COMMAND "${Python_EXECUTABLE}" -c "
from importlib.metadata import distribution
files = distribution('onednn-devel-cpu-gomp').files
header = next(f for f in files if f.as_posix().endswith('oneapi/dnnl/dnnl.h'))
print(header.locate().resolve().parents[2].as_posix())"
    OUTPUT_VARIABLE wheel OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()

# Not cached: the folder of a wheel is gone after the build that brought it.
unset(found)
set(major "")
find_path(found oneapi/dnnl/dnnl_version.h HINTS "${wheel}" NO_CACHE)
if(found)
  file(STRINGS "${found}/oneapi/dnnl/dnnl_version.h" major
    REGEX "define DNNL_VERSION_MAJOR 3$")
endif()
if(major)
  set(HALFBYTE_ONEDNN_INCLUDE "${found}")
  message(STATUS "oneDNN: headers in ${found}")
elseif(HALFBYTE_ONEDNN STREQUAL "AUTO")
  message(STATUS "oneDNN: no headers of version 3, built without")
else()
  message(FATAL_ERROR "oneDNN: HALFBYTE_ONEDNN is set and there are no headers of version 3")
endif()
