"""The C++ text that goes through the panels and blocks of a product, the same for every kernel of one."""

from __future__ import annotations

from fusion.kernels.backends.cpp.math import Section

PANELS: tuple[Section, ...] = (
    (
        ("products_of",),
        """\
// What a kernel computes of its products: rows of left factors for a panel, and a block of the results.
template <typename T>
using PanelRows = void(
    void* const* in, void* const* out, const int64_t* sizes, int64_t batch, int64_t top, int64_t height, int64_t first,
    int64_t last, bool few, T* panel);
template <typename T>
using ResultBlock = void(
    void* const* in, void* const* out, const int64_t* sizes, int64_t batch, int64_t outer, int64_t begin, int64_t end,
    int64_t top, int64_t height, int64_t bottom, bool few, const T* panel);
#define PARALLEL_PRODUCTS (1 << 17)  // multiplications from which on threads share them: some 4 us of one
// Panel after panel of left factors, and all blocks of each; threads share the rows, then the blocks.
template <typename T>
__attribute__((noinline)) void panels_of(
    PanelRows<T>* left, ResultBlock<T>* block, void* const* in, void* const* out, const int64_t* sizes, int64_t batches,
    int64_t rows, int64_t outers, int64_t lanes, int64_t height, bool few, int64_t width, T* panel) {
    const int64_t across = (lanes + width - 1) / width, blocks = outers * across;
#if defined(_OPENMP)  // blocks of few rows are read from memory: a thread takes some that follow each other
    const int64_t run = few ? clamp_index(blocks / (4 * omp_get_num_threads()), 1, 16) : 1;
#endif
    for (int64_t batch = 0; batch < batches; ++batch)
        for (int64_t top = 0; top < rows; top += height) {
            const int64_t bottom = top + height < rows ? top + height : rows;
#if defined(_OPENMP)
            #pragma omp for schedule(static)
#endif
            for (int64_t row = top; row < bottom; ++row)
                left(in, out, sizes, batch, top, height, row, row + 1, few, panel);
#if defined(_OPENMP)
            #pragma omp for schedule(dynamic, run)
#endif
            for (int64_t at = 0; at < blocks; ++at) {
                const int64_t begin = at % across * width, end = begin + width < lanes ? begin + width : lanes;
                block(in, out, sizes, batch, at / across, begin, end, top, height, bottom, few, panel);
            }
        }
}
// A kernel of products; a row of left factors has `depth` elements. Returns 0, or 1 where a panel finds no memory.
template <typename T>
__attribute__((noinline)) int32_t products_of(
    PanelRows<T>* left, ResultBlock<T>* block, void* const* in, void* const* out, const int64_t* sizes, int64_t batches,
    int64_t rows, int64_t outers, int64_t lanes, int64_t depth, bool few, int64_t width, int64_t work) {
    const int64_t height = panel_height(rows, depth, Tile<T>::height);
    T* const panel = new_panel<T>(height * depth);
    if (!panel) return 1;
#if defined(_OPENMP)
    if (work > PARALLEL_PRODUCTS && omp_get_max_threads() > 1) {
        #pragma omp parallel
        panels_of<T>(left, block, in, out, sizes, batches, rows, outers, lanes, height, few, width, panel);
    } else
#endif
    panels_of<T>(left, block, in, out, sizes, batches, rows, outers, lanes, height, few, width, panel);
    free(panel);
    return 0;
}
""",
    ),
)
