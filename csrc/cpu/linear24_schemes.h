// The two schemes together, for one Vec and element type.
#pragma once
#include "linear24_lanes.h"
#include "linear24_panel.h"

namespace vlprune {
namespace {

template <class V, class Element>
void run_scheme(const Linear24& problem, int part, int parts) {
    if (problem.tokens >= V::panel_from)
        Panel<V, Element>::run(problem, part, parts);
    else
        Lanes<V, Element>::run(problem, part, parts);
}

template <class V, class Element>
constexpr Linear24Variant variant_of = {Prepared<V, Element>::bytes, Prepared<V, Element>::fill,
                                        run_scheme<V, Element>};

}  // namespace
}  // namespace vlprune
