// tests/cpp/io/json_test.cc
// The JSON reader: what it accepts, where it says an error is, and what it costs.
// SPDX-License-Identifier: Apache-2.0
#include "io/json.h"

#include <gtest/gtest.h>
#include <stdint.h>
#include <stdio.h>

#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace halfbyte {
namespace {

// The error that `text` gives, or nullopt if it parses.
std::optional<Error> ErrorOf(std::string_view text, const JsonOptions& options = {}) {
  try {
    ParseJson(text, options);
    return std::nullopt;
  } catch (const Error& e) {
    return e;
  }
}

std::string Code(std::string_view text, const JsonOptions& options = {}) {
  const std::optional<Error> e = ErrorOf(text, options);
  return e ? e->info().code : "";
}

template <class Get>
std::string TypeErrorCode(const Get& get) {
  try {
    (void)get();
    return "";
  } catch (const Error& e) {
    return e.info().code;
  }
}

TEST(Json, AcceptsWhatTheGrammarAllows) {
  for (const char* text :
       {"0",           "-0",          "-1.5e-7",
        "1E+2",        "1e2",         "0.0",
        "true",        "false",       "null",
        "\"\"",        "{}",          "[]",
        " \t\n\r[ ] ", "{\"\":\"\"}", "[[[]]]",
        "\"\\u0000\"", "\"\x7f\"",    "\"\xEF\xBF\xBE\"",
        "\"\\uFFFF\"", "[1,\n2]",     "123456789012345678901234567890"}) {
    EXPECT_EQ(Code(text), "") << text;
  }
}

TEST(Json, PointsAtTheFirstByteThatBreaksTheGrammar) {
  // '^' stands before that byte and is not part of the text.
  for (std::string text : {"^",
                           " ^",
                           "^x",
                           "^,",
                           "^]",
                           "^}",
                           "^'a'",
                           "^+1",
                           "^.5",
                           "-^",
                           "-^a",
                           "0^1",
                           "1.^",
                           "1.^e3",
                           "1e^",
                           "1e+^",
                           "0^x10",
                           "1 ^2",
                           "^NaN",
                           "^Infinity",
                           "-^Infinity",
                           "t^",
                           "tru^x",
                           "nul^",
                           "nul^L",
                           "^True",
                           "[^",
                           "[1^",
                           "[1,^",
                           "[1,^]",
                           "[^,1]",
                           "[1 ^2]",
                           "[1^}",
                           "{^",
                           "{^1:2}",
                           "{\"a\"^",
                           "{\"a\"^,1}",
                           "{\"a\":^}",
                           "{\"a\":1^",
                           "{\"a\":1,^}",
                           "{\"a\":1,^,}",
                           "{\"a\":1^]",
                           "{^a:1}",
                           "[]^]",
                           "{}^{}",
                           "1^//",
                           "[^/**/]",
                           "\"^",
                           "\"a^",
                           "\"a\\^",
                           "\"^\\x41\"",
                           "\"^\\'\"",
                           "\"\\u^\"",
                           "\"\\u12^g4\"",
                           "\"\\u123^\"",
                           "\"^\\ud800\"",
                           "\"^\\ud800x\"",
                           "\"^\\ud800\\u0041\"",
                           "\"^\\udc00\"",
                           "\"^\\ud800\\ud800\"",
                           "\"^\\udc00\\udc00\"",
                           "\"^\\ud800\\ue000\"",
                           "\"a^\n\"",
                           "\"a^\t\"",
                           "^\v1",
                           "1^\f",
                           "[1]^\x01"}) {
    const size_t at = text.find('^');
    text.erase(at, 1);
    const std::optional<Error> e = ErrorOf(text);
    ASSERT_TRUE(e) << text;
    EXPECT_EQ(e->info().code, "JSON") << text;
    EXPECT_EQ(e->cls(), ErrorClass::kFormat) << text;
    EXPECT_EQ(e->info().offset, at) << text;
  }
  const std::string nul("[1,\0 2]", 7);
  EXPECT_EQ(ErrorOf(nul)->info().offset, 3u);
}

TEST(Json, RefusesTextThatIsNotUtf8BeforeAnythingElse) {
  struct Case {
    std::string_view text;
    uint64_t offset;
  };
  for (const Case& c :
       {Case{"\xEF\xBB\xBF{}", 0}, Case{"[\"a\xFF\"]", 3}, Case{"[\"\xC0\xAF\"]", 2},
        Case{"[\"\xED\xA0\x80\"]", 2}, Case{"[\"\xF4\x90\x80\x80\"]", 2},
        Case{"[x \xE2\x82", 3}, Case{"[\"0123456789abcdef\x80\"]", 18}}) {
    const std::optional<Error> e = ErrorOf(c.text);
    ASSERT_TRUE(e) << c.text;
    EXPECT_EQ(e->info().code, "JSON_UTF8") << c.text;
    EXPECT_EQ(e->info().offset, c.offset) << c.text;
  }
}

TEST(Json, IntegersAreExact) {
  const std::string text =
      "[9007199254740993,18446744073709551615,-9223372036854775808,"
      "9223372036854775807,18446744073709551616,-9223372036854775809,-0]";
  const JsonDocument d = ParseJson(text);
  std::vector<JsonValue> v;
  for (const JsonValue& e : d.root().Elements()) v.push_back(e);
  ASSERT_EQ(v.size(), 7u);
  EXPECT_EQ(v[0].AsUint64(), 9007199254740993u);  // 2^53 + 1 is no double
  EXPECT_EQ(v[0].AsInt64(), 9007199254740993);
  EXPECT_EQ(v[1].AsUint64(), UINT64_MAX);
  EXPECT_EQ(v[2].AsInt64(), INT64_MIN);
  EXPECT_EQ(v[3].AsInt64(), INT64_MAX);
  EXPECT_EQ(TypeErrorCode([&] { return v[1].AsInt64(); }), "JSON_TYPE");
  EXPECT_EQ(TypeErrorCode([&] { return v[2].AsUint64(); }), "JSON_TYPE");
  EXPECT_EQ(TypeErrorCode([&] { return v[4].AsUint64(); }), "JSON_TYPE");
  EXPECT_EQ(TypeErrorCode([&] { return v[5].AsInt64(); }), "JSON_TYPE");
  EXPECT_EQ(v[6].AsInt64(), 0);
  EXPECT_EQ(v[4].AsDouble(), 0x1p64);
}

TEST(Json, FractionsAndExponentsAreNoIntegers) {
  const JsonDocument d = ParseJson("[1.0,1e3,1E0,0.5,1e999]");
  for (const JsonValue& v : d.root().Elements()) {
    EXPECT_TRUE(v.IsNumber());
    EXPECT_FALSE(v.IsInteger());
    EXPECT_EQ(TypeErrorCode([&] { return v.AsUint64(); }), "JSON_TYPE");
    EXPECT_EQ(TypeErrorCode([&] { return v.AsInt64(); }), "JSON_TYPE");
  }
  auto it = d.root().Elements().begin();
  EXPECT_EQ((*it).AsDouble(), 1.0);
  EXPECT_EQ((*++it).AsDouble(), 1000.0);
  ++it;
  EXPECT_EQ((*++it).AsDouble(), 0.5);
  ++it;
  EXPECT_EQ(TypeErrorCode([&] { return (*it).AsDouble(); }), "JSON_TYPE");
}

TEST(Json, AWrongTypeNamesItsPlace) {
  JsonOptions options;
  options.kind = "index";
  options.base_offset = 100;
  const JsonDocument d = ParseJson("{\"a\": [true]}", options);
  try {
    d.root().Find("a")->AsString();
    FAIL() << "an array was read as a string";
  } catch (const Error& e) {
    EXPECT_EQ(e.cls(), ErrorClass::kFormat);
    EXPECT_EQ(e.info().code, "JSON_TYPE");
    EXPECT_EQ(e.info().kind, "index");
    EXPECT_EQ(e.info().offset, 106u);
    EXPECT_EQ(e.info().found, "an array");
    EXPECT_EQ(e.info().expected, "a string");
    EXPECT_EQ(e.info().key, "a");
  }
  EXPECT_EQ(TypeErrorCode([&] { d.root().Elements(); }), "JSON_TYPE");
  EXPECT_EQ(TypeErrorCode([&] { d.root().Find("a")->Members(); }), "JSON_TYPE");
  EXPECT_TRUE((*d.root().Find("a")->Elements().begin()).AsBool());
  EXPECT_FALSE(d.root().Find("b"));
}

// The key of `value` that an error about its type names.
std::string PlaceOf(const JsonValue& value) {
  try {
    value.AsInt64();
  } catch (const Error& e) {
    EXPECT_EQ(e.info().subject,
              e.info().key.empty() ? "" : "key '" + e.info().key + "'");
    return e.info().key;
  }
  return "an integer";
}

TEST(JsonTest, AWrongTypeIsNamedByItsPlace) {
  const JsonDocument d = ParseJson(
      R"({"a": ["b", {"c": [[], [1, null], true]}, {}], "d\n": "e", "": {}})");
  const JsonValue root = d.root(), a = *root.Find("a");
  EXPECT_EQ(PlaceOf(root), "");
  EXPECT_EQ(PlaceOf(a), "a");
  auto element = a.Elements().begin();
  EXPECT_EQ(PlaceOf(*element), "a[0]");
  const JsonValue object = *++element;
  EXPECT_EQ(PlaceOf(object), "a[1]");
  EXPECT_EQ(PlaceOf(*++element), "a[2]");
  const JsonValue c = *object.Find("c");
  EXPECT_EQ(PlaceOf(c), "a[1].c");
  auto inner = c.Elements().begin();
  EXPECT_EQ(PlaceOf(*inner), "a[1].c[0]");
  auto last = (*++inner).Elements().begin();
  EXPECT_EQ(PlaceOf(*last), "an integer");
  EXPECT_EQ(PlaceOf(*++last), "a[1].c[1][1]");
  EXPECT_EQ(PlaceOf(*++inner), "a[1].c[2]");
  EXPECT_EQ(PlaceOf(*root.Find("d\n")), "d\\x0A");
}

TEST(Json, UnescapesStrings) {
  const JsonDocument d = ParseJson(
      R"(["\"\\\/\b\f\n\r\t","\u0041\u00e9\u20AC\ud83d\ude00","a\u0000b","plain é","x\\"])");
  std::vector<std::string> got;
  for (const JsonValue& v : d.root().Elements()) got.emplace_back(v.AsString());
  const std::vector<std::string> want = {
      "\"\\/\b\f\n\r\t", "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80",
      std::string("a\0b", 3), "plain \xC3\xA9", "x\\"};
  EXPECT_EQ(got, want);
}

TEST(Json, EveryCodePointSurvivesAnEscape) {
  for (uint32_t c = 0; c < 0x110000; c += 0x3F) {
    if (c >= 0xD800 && c < 0xE000) continue;
    char text[24];
    if (c < 0x10000) {
      snprintf(text, sizeof(text), "\"\\u%04X\"", c);
    } else {
      snprintf(text, sizeof(text), "\"\\u%04x\\u%04x\"", 0xD800 + ((c - 0x10000) >> 10),
               0xDC00 + (c & 0x3FF));
    }
    const JsonDocument d = ParseJson(text);
    const std::string_view s = d.root().AsString();
    uint32_t back = static_cast<uint8_t>(s[0]);
    back &= s.size() == 1 ? 0x7F : 0x7F >> s.size();
    for (size_t i = 1; i < s.size(); ++i) back = back << 6 | (s[i] & 0x3F);
    ASSERT_EQ(back, c) << text;
  }
}

TEST(Json, KeepsTheOrderAndThePlaceOfMembers) {
  const std::string text = R"({"z": {"q": [1, {"r": null}]}, "a": "s", "m": -2})";
  const JsonDocument d = ParseJson(text);
  std::string keys;
  for (const JsonMember& m : d.root().Members()) {
    keys += m.key;
    EXPECT_EQ(text[m.key_offset], '"');
    EXPECT_EQ(text.substr(m.key_offset + 1, m.key.size()), m.key);
    EXPECT_GT(m.value.offset(), m.key_offset);
  }
  EXPECT_EQ(keys, "zam");
  EXPECT_EQ(d.root().size(), 3u);
  EXPECT_EQ(d.root().Find("m")->AsInt64(), -2);
  EXPECT_EQ(d.root().Find("z")->Find("q")->size(), 2u);
  EXPECT_FALSE(d.root().Find("q")) << "found in a nested object";
}

TEST(Json, RefusesKeysThatAreEqualOnceUnescaped) {
  struct Case {
    std::string_view text;
    uint64_t offset;  // of the second key
  };
  for (const Case& c :
       {Case{R"({"a":1,"a":2})", 7}, Case{R"({"a":1,"\u0061":2})", 7},
        Case{R"({"":1,"":2})", 6}, Case{R"([{"x":{"k":[],"b":0,"k":1}}])", 20},
        Case{R"({"a":1,"a":{"b":1,"b":2}})", 7},
        Case{R"({"x":{"b":1,"b":2},"a":1,"a":2})", 12},
        Case{R"({"\n":1,"b":2,"\u000A":3})", 14}}) {
    const std::optional<Error> e = ErrorOf(c.text);
    ASSERT_TRUE(e) << c.text;
    EXPECT_EQ(e->info().code, "JSON_DUPLICATE") << c.text;
    EXPECT_EQ(e->info().offset, c.offset) << c.text;
  }
  EXPECT_EQ(Code(R"({"a":{"a":1},"b":{"a":1}})"), "") << "other objects' keys";
  EXPECT_EQ(Code(R"({"a":1,"a":2,})"), "JSON") << "syntax comes first";
}

TEST(Json, FindsOneDuplicateAmongManyKeys) {
  std::string text = "{";
  for (int i = 0; i < 200'000; ++i) text += "\"k" + std::to_string(i) + "\":0,";
  const size_t at = text.size();
  EXPECT_EQ(Code(text + "\"other\":0}"), "");
  const std::optional<Error> e = ErrorOf(text + "\"k77777\":0}");
  ASSERT_TRUE(e);
  EXPECT_EQ(e->info().code, "JSON_DUPLICATE");
  EXPECT_EQ(e->info().offset, at);
}

TEST(Json, LimitsHoldExactly) {
  JsonOptions options;
  options.max_depth = 3;
  options.max_string_bytes = 4;
  options.max_members = 2;
  EXPECT_EQ(Code("[[[1]]]", options), "");
  EXPECT_EQ(Code("\"1234\"", options), "");
  EXPECT_EQ(Code(R"({"a":1,"b":2})", options), "");
  struct Case {
    std::string_view text;
    uint64_t offset;
  };
  for (const Case& c :
       {Case{"[[[[1]]]]", 3}, Case{"[1,{\"a\":[[]]}]", 9}, Case{"[\"12345\"]", 1},
        Case{"[\"12345", 1}, Case{R"({"a":1,"b":2,"c":3})", 13}}) {
    const std::optional<Error> e = ErrorOf(c.text, options);
    ASSERT_TRUE(e) << c.text;
    EXPECT_EQ(e->cls(), ErrorClass::kLimit) << c.text;
    EXPECT_EQ(e->info().code, "JSON") << c.text;
    EXPECT_EQ(e->info().offset, c.offset) << c.text;
  }
  options.max_bytes = 2;
  EXPECT_EQ(Code("[]", options), "");
  EXPECT_EQ(ErrorOf("[] ", options)->cls(), ErrorClass::kLimit);
}

TEST(Json, AMillionBracketsAreRefusedNotFollowed) {
  for (const char open : {'[', '{'}) {
    const std::optional<Error> e = ErrorOf(std::string(1'000'000, open));
    ASSERT_TRUE(e);
    EXPECT_EQ(e->info().code, "JSON");
  }
}

// Nodes take 12 bytes, and "0," only two: the number of values is bounded by the length
// of the text, so that memory stays below 24 MiB + 4 bytes a byte.
TEST(Json, ManyTinyValuesAreALimit) {
  std::string text = "[0";
  while (text.size() < 12'000'000) text += ",0";
  text += "]";
  const std::optional<Error> e = ErrorOf(text);
  ASSERT_TRUE(e);
  EXPECT_EQ(e->cls(), ErrorClass::kLimit);
  // 2^21 + length / 4 values fit; the array is one, and value number n is at 2 n - 1.
  const uint64_t fit = (uint64_t{1} << 21) + text.size() / 4;
  EXPECT_EQ(e->info().offset, 2 * fit - 1);
}

TEST(Json, CutAnywhereItIsAnError) {
  const std::string text =
      R"({"a":[1,-2.5e3,true,false,null,"x\u00e9\ud83d\ude00é"],"b":{"c":{}}})";
  ASSERT_EQ(Code(text), "");
  for (size_t n = 0; n < text.size(); ++n) {
    const std::optional<Error> e = ErrorOf(text.substr(0, n));
    ASSERT_TRUE(e) << n;
    EXPECT_LE(*e->info().offset, n);
    EXPECT_TRUE(e->info().code == "JSON" || e->info().code == "JSON_UTF8") << n;
  }
}

TEST(Json, CodesAndOffsetsAreTheCallers) {
  JsonOptions options;
  options.kind = "safetensors";
  options.utf8_code = "U";
  options.syntax_code = "S";
  options.duplicate_code = "D";
  options.base_offset = 8;
  EXPECT_EQ(Code("[\xFF]", options), "U");
  EXPECT_EQ(Code("[,]", options), "S");
  EXPECT_EQ(Code(R"({"a":1,"a":1})", options), "D");
  EXPECT_EQ(ErrorOf("[,]", options)->info().offset, 9u);
  EXPECT_EQ(ErrorOf("[,]", options)->info().kind, "safetensors");
}

TEST(Json, TextFromTheFileIsEscapedInMessages) {
  const std::string message = ErrorOf("\x1b[2J")->what();
  EXPECT_EQ(message.find('\x1b'), std::string::npos);
  EXPECT_NE(message.find("\\x1B"), std::string::npos) << message;
}

TEST(Json, ValuesOutliveAMoveAndTheOwnerOutlivesTheText) {
  auto text = std::make_shared<const std::string>(R"(["plain","\u0041"])");
  const std::weak_ptr<const std::string> watch = text;
  JsonDocument first = ParseJson(*text, {}, text);
  text.reset();
  const JsonValue root = first.root();
  {
    const JsonDocument second = std::move(first);
    auto it = root.Elements().begin();
    EXPECT_EQ((*it).AsString(), "plain");
    EXPECT_EQ((*++it).AsString(), "A");
    EXPECT_FALSE(watch.expired());
  }
  EXPECT_TRUE(watch.expired());
}

TEST(Json, AFileIsNamedInItsErrors) {
  const std::string path = testing::TempDir() + "halfbyte_json_test.json";
  std::ofstream(path) << R"({"a": [1, 2]})";
  EXPECT_EQ(ReadJsonFile(path).root().Find("a")->size(), 2u);
  std::ofstream(path) << R"({"a": [1, 2)";
  try {
    ReadJsonFile(path);
    FAIL() << "a cut file was read";
  } catch (const Error& e) {
    EXPECT_EQ(e.info().path, path);
    EXPECT_EQ(e.info().offset, 11u);
    EXPECT_TRUE(std::string(e.what()).starts_with("halfbyte_json_test.json: json: "))
        << e.what();
  }
  remove(path.c_str());
}

}  // namespace
}  // namespace halfbyte
