// Activation functions of a vector, accurate to a few units in the last place.
#pragma once

#include "native.h"

namespace zoo {

enum Activation { NONE, GELU, GELU_TANH, SILU };

// The error function at x / sqrt(2), as x P(x^2) / Q(x^2): a fit of least relative error (2e-8) for |x| < EDGE, beyond
// which it is 1 in single precision.
[[gnu::always_inline]] inline Vector error_function(Vector x) {
  constexpr float EDGE = 5.55f;
  Vector z = x * 0.70710678f, t = z * z;
  Vector p = all(2.04605658e-6f), q = all(3.80479614e-5f);
  for (float c : {2.84841284e-4f, 3.77242733e-3f, 5.27689233e-2f, 0.190590814f, 1.12837911f}) p = p * t + c;
  for (float c : {1.16382889e-3f, 1.49829527e-2f, 0.114181519f, 0.502239406f, 1.f}) q = q * t + c;
  Vector y = z * p / q;
  y = x > EDGE ? all(1.f) : y;
  return x < -EDGE ? all(-1.f) : y;
}

[[gnu::always_inline]] inline Vector times_sigmoid(Vector x, Vector of) {
  Vector turned = of < -89.f ? all(89.f) : -of;  // whose exponential is infinity, as that of anything beyond
  return x / (1.f + exponential(turned));
}

template <int ACT>
[[gnu::always_inline]] inline Vector activated(Vector x) {
  if constexpr (ACT == GELU) return x * .5f * (1.f + error_function(x));
  if constexpr (ACT == GELU_TANH) return times_sigmoid(x, x * (1.59576912f + 0.0713548162f * x * x));
  if constexpr (ACT == SILU) return times_sigmoid(x, x);
  return x;
}

}  // namespace zoo
