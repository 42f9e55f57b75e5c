// The two schemes together, for one Vec and element type.
#pragma once
#include "linear24_lanes.h"
#include "linear24_panel.h"
#include "linear24_product.h"

namespace vlprune {
namespace {

template <class V, class Element>
constexpr Linear24Variant variant_of = {
    {Pairs<V, Element>::bytes, Pairs<V, Element>::fill, Panel<Product<V, Element>>::run},
    {Step<V, Element>::bytes, Step<V, Element>::fill, Lanes<V, Element>::run},
    V::panel_from,
};

}  // namespace
}  // namespace vlprune
