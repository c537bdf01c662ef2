// Responses of the frames of videos, and whether they are linked according to the interface.
#pragma once

#include "problems_on_host.hpp"

namespace {

using art::Links;
using art::Responses;

// Responses with arbitrary strides; values between them are NaN and must not be read.
struct Film {
  Dtype dtype;
  int videos, frames, size, channels;
  int64_t stride_video, stride_frame, stride_response;
  size_t offset;  // values before the first
  std::vector<char> bytes;

  Responses responses() const {
    return {&bytes[offset * naive::bytes_of(dtype)], dtype, videos, frames, size, channels, stride_video, stride_frame,
            stride_response, tie()};
  }
  double tie() const { return dtype == Dtype::float64 ? 0x1p-44 : 0x1p-18; }
  size_t place(int video, int frame, int row, int channel) const {
    return (offset + video * stride_video + frame * stride_frame + row * stride_response + channel) *
           naive::bytes_of(dtype);
  }
  double value(int video, int frame, int row, int channel) const {
    return naive::decode(dtype, &bytes[place(video, frame, row, channel)]);
  }
};

struct FilmShape {
  int videos, frames, size, channels;
  int gap;        // values between responses
  size_t offset;  // of the first
  bool transposed;  // the frames of a response are adjacent
};

Film film_of(Dtype dtype, const FilmShape& shape) {
  Film film{dtype, shape.videos, shape.frames, shape.size, shape.channels, 0, 0, 0, shape.offset, {}};
  const int64_t row = shape.channels + shape.gap;
  film.stride_response = shape.transposed ? row * shape.frames : row;
  film.stride_frame = shape.transposed ? row : row * shape.size;
  film.stride_video = row * (shape.size * shape.frames + 1);
  const size_t bytes = naive::bytes_of(dtype);
  const size_t last = film.place(shape.videos - 1, shape.frames - 1, shape.size - 1, shape.channels - 1);
  film.bytes.resize(last + bytes);
  for (size_t at = 0; at < film.bytes.size(); at += bytes) naive::encode(dtype, kNan, &film.bytes[at]);
  for (int v = 0; v < shape.videos; ++v) {
    // Responses that continue and swap places from frame to frame.
    Matrix base(static_cast<size_t>(shape.size) * shape.channels);
    for (double& number : base) number = normal();
    for (int t = 0; t < shape.frames; ++t) {
      for (int k = 0; k < shape.size; ++k) {
        const int fate = below(25);  // a few are zero or NaN
        const int source = (k * 5 + t * 3 + below(2)) % shape.size;
        for (int c = 0; c < shape.channels; ++c) {
          double number = base[static_cast<size_t>(source) * shape.channels + c] + 0.7 * normal();
          if (fate == 0) number = 0;
          if (fate == 1 && c == shape.channels / 2) number = kNan;
          if (fate == 2 && dtype != Dtype::float16) number *= 1e-25;  // zero in float32, where its square underflows
          naive::encode(dtype, number, &film.bytes[film.place(v, t, k, c)]);
        }
      }
    }
  }
  return film;
}

// Cosines of the responses of a frame and the next. NaN stays NaN.
Matrix cosines_of(const Film& film, int video, int frame) {
  const double tiny = film.dtype == Dtype::float64 ? 0x1p-1022 : 0x1p-126;
  const auto dot = [&](int t, int i, int u, int j) {
    double sum = 0;
    for (int c = 0; c < film.channels; ++c) sum += film.value(video, t, i, c) * film.value(video, u, j, c);
    return sum;
  };
  std::vector<double> here(film.size), next(film.size);
  for (int k = 0; k < film.size; ++k) here[k] = dot(frame, k, frame, k), next[k] = dot(frame + 1, k, frame + 1, k);
  Matrix cosines(static_cast<size_t>(film.size) * film.size);
  for (int i = 0; i < film.size; ++i) {
    for (int j = 0; j < film.size; ++j) {
      const bool zero = here[i] < tiny || next[j] < tiny;
      const double cosine = dot(frame, i, frame + 1, j) / std::sqrt(here[i]) / std::sqrt(next[j]);
      cosines[i * film.size + j] = zero && !std::isnan(here[i] + next[j]) ? 0.0 : cosine;
    }
  }
  return cosines;
}

template <class Real>
struct LinkResult {
  std::vector<int64_t> matches, order, tracklet_id;
  std::vector<Real> matched, similarity;

  LinkResult(size_t videos, size_t frames, size_t size)
      : matches(videos * (frames - 1) * size, -7),
        order(videos * frames * size, -7),
        tracklet_id(videos * frames * size, -7),
        matched(videos * (frames - 1) * size, Real(-7)),
        similarity(videos * (frames - 1) * size, Real(-7)) {}

  Links links() {
    return {matches.data(), matched.data(), order.data(), similarity.data(), tracklet_id.data()};
  }
};

template <class Real>
void check_matches(const Film& film, Method method, const LinkResult<Real>& result, const std::string& what) {
  const double tolerance = film.dtype == Dtype::float64 ? 1e-13 : 3e-6;
  for (int v = 0; v < film.videos; ++v) {
    for (int t = 0; t + 1 < film.frames; ++t) {
      const size_t first = (static_cast<size_t>(v) * (film.frames - 1) + t) * film.size;
      const int64_t* columns = &result.matches[first];
      const Matrix cosines = cosines_of(film, v, t);
      Matrix cost = cosines;
      for (double& c : cost) c = std::isnan(c) ? 2 : -c;
      const std::string where = what + " video " + std::to_string(v) + " frame " + std::to_string(t);
      if (!naive::is_permutation(columns, film.size)) differ(where + ": not a permutation", cost, film.size, columns);
      for (int k = 0; k < film.size; ++k) {
        const double expected = cosines[k * film.size + columns[k]];
        const double got = result.matched[first + k];
        const bool same = std::isnan(expected) ? std::isnan(got) : std::fabs(got - expected) <= tolerance;
        if (!same) differ(where + ": another cosine, " + std::to_string(got), cost, film.size, columns);
      }
      const bool good = method == Method::greedy
                            ? naive::is_least_first(cost, film.size, columns, 2 * tolerance)
                            : naive::sum_of(cost, film.size, columns) <=
                                  naive::least_sum(cost, film.size) + 2 * film.size * tolerance;
      if (!good) differ(where + ": not the best", cost, film.size, columns);
    }
  }
}

template <class T>
void expect_same(const std::vector<T>& got, const std::vector<T>& expected, const std::string& what) {
  for (size_t e = 0; e < expected.size(); ++e) {
    if (got[e] == expected[e] || (got[e] != got[e] && expected[e] != expected[e])) continue;
    std::printf("FAILED: %s: number %zu is %g, expected %g\n", what.c_str(), e, static_cast<double>(got[e]),
                static_cast<double>(expected[e]));
    std::exit(1);
  }
}

// The expected results for these matches and similarities, according to the interface.
template <class Real>
void compose_naively(int videos, int frames, int size, double min_similarity, LinkResult<Real>& result) {
  for (int v = 0; v < videos; ++v) {
    int64_t next = size;
    for (int k = 0; k < size; ++k) result.order[v * frames * size + k] = result.tracklet_id[v * frames * size + k] = k;
    for (int t = 0; t + 1 < frames; ++t) {
      const size_t here = (static_cast<size_t>(v) * frames + t) * size;
      const size_t match = (static_cast<size_t>(v) * (frames - 1) + t) * size;
      for (int k = 0; k < size; ++k) {
        const int64_t response = result.order[here + k];
        result.order[here + size + k] = response < 0 ? -1 : result.matches[match + response];
        if (response < 0) continue;
        const Real similarity = result.matched[match + response];
        result.similarity[match + k] = similarity;
        const bool ends = !std::isnan(min_similarity) && !(similarity >= static_cast<Real>(min_similarity));
        result.tracklet_id[here + size + k] = ends ? next++ : result.tracklet_id[here + k];
      }
    }
  }
}

template <class Real>
void check_composed(int videos, int frames, int size, double min_similarity, const LinkResult<Real>& result,
                    const std::string& what) {
  LinkResult<Real> expected = result;
  compose_naively(videos, frames, size, min_similarity, expected);
  expect_same(result.order, expected.order, what + " order");
  expect_same(result.similarity, expected.similarity, what + " similarity");
  expect_same(result.tracklet_id, expected.tracklet_id, what + " tracklet_id");
}

template <class Real, class Link>
void check_film(
    Dtype dtype, const FilmShape& shape, Method method, double min_similarity, int seed, const Link& link) {
  generator.seed(seed);
  const Film film = film_of(dtype, shape);
  LinkResult<Real> result(shape.videos, shape.frames, shape.size);
  link(film.responses(), method, min_similarity, result.links());
  const std::string what = std::string("linking ") + naive::name_of(dtype) + " size " + std::to_string(shape.size) +
                           " channels " + std::to_string(shape.channels) + " seed " + std::to_string(seed);
  check_matches(film, method, result, what);
  check_composed(shape.videos, shape.frames, shape.size, min_similarity, result, what);
}

// Frames that are equal, with two or three equal responses of each kind: every slot keeps its response.
template <class Real, class Link>
void check_still(Dtype dtype, int size, int seed, const Link& link) {
  generator.seed(seed);
  Film film = film_of(dtype, {2, 3, size, 100, 0, 0, false});
  const int copies = 2 + below(2);
  for (int v = 0; v < film.videos; ++v) {
    for (int c = 0; c < film.channels; ++c) {
      for (int k = 0; k < size; ++k) {
        const double number = k % copies == 0 ? normal() : film.value(v, 0, k - 1, c);
        for (int t = 0; t < film.frames; ++t) naive::encode(dtype, number, &film.bytes[film.place(v, t, k, c)]);
      }
    }
  }
  for (Method method : {Method::optimal, Method::greedy}) {
    LinkResult<Real> result(film.videos, film.frames, size);
    link(film.responses(), method, kNan, result.links());
    expect_same(result.order, result.tracklet_id, "still film of " + std::to_string(size));
    for (Real similarity : result.similarity) {
      if (std::fabs(similarity - 1) > 1e-6) expect_same<Real>({similarity}, {1}, "similarity of a still film");
    }
  }
}

// Links each film with link(responses, method, min_similarity, links).
template <class Link>
void check_linking(const std::vector<Dtype>& dtypes, const Link& link) {
  int seed = 1000;
  int films = 0;
  for (int size : {1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64}) {
    for (int channels : {1, 7, 96, 256}) {
      for (Dtype dtype : dtypes) {
        const int large = size > 16;
        // Rows that can be read in units, rows at odd offsets and strides, and transposed ones.
        const FilmShape shapes[] = {{2, 4 - large, size, channels, 0, 0, false},
                                    {1 + !large, 3 - large, size, channels, 3, 1, false},
                                    {1, 3 - large, size, channels, 8 - channels % 8, channels == 96 ? 1u : 8u, true}};
        for (const FilmShape& shape : shapes) {
          const Method method = ++seed % 3 == 0 ? Method::greedy : Method::optimal;
          const double min_similarity = seed % 2 ? 0.4 : kNan;
          if (dtype == Dtype::float64) check_film<double>(dtype, shape, method, min_similarity, seed, link);
          if (dtype != Dtype::float64) check_film<float>(dtype, shape, method, min_similarity, seed, link);
          ++films;
        }
      }
    }
    std::printf("linking of %d\n", size);
  }
  check_film<float>(Dtype::float32, {3, 1, 2, 5, 0, 0, false}, Method::optimal, 0.5, ++seed, link);
  for (int size : {2, 3, 4, 5, 8, 13, 16, 32, 33, 64}) {
    for (Dtype dtype : dtypes) {
      if (dtype == Dtype::float64) check_still<double>(dtype, size, ++seed, link);
      if (dtype != Dtype::float64) check_still<float>(dtype, size, ++seed, link);
    }
  }
  std::printf("still films keep the slots\n");
  std::printf("linking: %d films agree\n", films + 1);
}

}  // namespace
