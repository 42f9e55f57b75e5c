// Activations on registers, for any Vec. Error against float64 is below 4e-7 absolute (tested).
#pragma once
#include "ops.h"

namespace vlprune {
namespace {

// e^x for |x| <= 87; beyond it the nearest of these ends. Cephes' expf.
template <class V>
inline typename V::reg exp_clamped(typename V::reg x) {
    x = V::max(V::set1(-87.0f), V::min(V::set1(87.0f), x));
    const auto n = V::round(V::mul(x, V::set1(1.44269504f)));
    auto r = V::fma(n, V::set1(-0.693359375f), x);
    r = V::fma(n, V::set1(2.12194440e-4f), r);
    auto p = V::set1(1.9875691500e-4f);
    p = V::fma(p, r, V::set1(1.3981999507e-3f));
    p = V::fma(p, r, V::set1(8.3334519073e-3f));
    p = V::fma(p, r, V::set1(4.1665795894e-2f));
    p = V::fma(p, r, V::set1(1.6666665459e-1f));
    p = V::fma(p, r, V::set1(5.0000001201e-1f));
    p = V::fma(p, V::mul(r, r), V::add(r, V::set1(1.0f)));
    return V::mul(p, V::exp2_whole(n));
}

// max(x, 0) - |x| * erfc(|x| / sqrt 2) / 2: no cancellation on the negative side. erfc as the polynomial
// in 1 / (1 + p z) times e^(-z^2) of Abramowitz and Stegun 7.1.26, error below 1.5e-7.
template <class V>
inline typename V::reg gelu(typename V::reg x) {
    const auto a = V::min(V::set1(13.0f), V::abs(x));
    const auto t = V::div(V::set1(1.0f), V::fma(a, V::set1(0.3275911f * 0.70710678f), V::set1(1.0f)));
    auto p = V::set1(0.5f * 1.061405429f);
    p = V::fma(p, t, V::set1(0.5f * -1.453152027f));
    p = V::fma(p, t, V::set1(0.5f * 1.421413741f));
    p = V::fma(p, t, V::set1(0.5f * -0.284496736f));
    p = V::fma(p, t, V::set1(0.5f * 0.254829592f));
    const auto e = exp_clamped<V>(V::mul(a, V::mul(a, V::set1(-0.5f))));
    return V::sub(V::max(V::set1(0.0f), x), V::mul(V::mul(a, e), V::mul(p, t)));
}

template <class V>
inline typename V::reg activate(typename V::reg x, Activation activation) {
    switch (activation) {
        case Activation::gelu:
            return gelu<V>(x);
        case Activation::quick_gelu:
            return V::div(x, V::add(V::set1(1.0f), exp_clamped<V>(V::mul(x, V::set1(-1.702f)))));
        default:
            return x;
    }
}

}  // namespace
}  // namespace vlprune
