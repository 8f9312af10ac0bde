# Defines GTest::gtest_main: an installed copy, or the one halfbyte_fetch gets.
find_package(GTest QUIET)
if(GTest_FOUND)
  return()
endif()

set(version 1.16.0)
set(sha256 2f54382b5d13d6cd0be2afc524f1e510d37f8ba78c2d439c5bea64ef37e30d01)
set(file googletest_${version}.orig.tar.gz)
if(NOT FETCHCONTENT_SOURCE_DIR_GTEST)
  halfbyte_fetch(gtest VERSION ${version} SHA256 ${sha256}
    URL "https://deb.debian.org/debian/pool/main/g/googletest/${file}"
    DEBIAN trixie PACKAGE googletest FILE ${file})
endif()
set(INSTALL_GTEST OFF CACHE BOOL "")
set(BUILD_GMOCK OFF CACHE BOOL "")
FetchContent_Declare(gtest
  URL "file://${gtest_ARCHIVE}" URL_HASH SHA256=${sha256} DOWNLOAD_EXTRACT_TIMESTAMP ON
  SYSTEM EXCLUDE_FROM_ALL)
FetchContent_MakeAvailable(gtest)
