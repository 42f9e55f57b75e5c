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

// max(x, 0) - |x| * erfc(|x| / sqrt 2) / 2: no cancellation on the negative side. The second term is |x| / p^8 with
// p a polynomial of degree 9, fitted so that the largest absolute error of that quotient is least (2.3e-8).
template <class V>
inline typename V::reg gelu(typename V::reg x) {
    const auto a = V::min(V::set1(13.0f), V::abs(x));
    auto p = V::fma(a, V::set1(5.1063989e-7f), V::set1(-4.0775240e-6f));
    p = V::fma(p, a, V::set1(2.4283778e-5f));
    p = V::fma(p, a, V::set1(-2.5956251e-5f));
    p = V::fma(p, a, V::set1(3.5876905e-4f));
    p = V::fma(p, a, V::set1(8.2137232e-4f));
    p = V::fma(p, a, V::set1(9.5144175e-3f));
    p = V::fma(p, a, V::set1(4.8799966e-2f));
    p = V::fma(p, a, V::set1(0.10876373f));
    p = V::fma(p, a, V::set1(1.0905077f));
    p = V::mul(p, p);
    p = V::mul(p, p);
    p = V::mul(p, p);
    return V::sub(V::max(V::set1(0.0f), x), V::div(a, p));
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
