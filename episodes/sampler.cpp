// Pictures of classes, drawn without replacement: EpisodeSampler._pictures, to the bit.

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

// What `_draw` in sampler.py does, one row after the other: `draws` (at least 1) of each row's class, of `counts` pictures each.
// raw (draws, rows), not negative; classes (rows); order, starts and counts as in FeatureBank; out (rows, draws). 1 without memory.
extern "C" int pictures(const int64_t *raw, const int64_t *classes, size_t rows, size_t draws, const int64_t *starts,
                        const int64_t *counts, const int64_t *order, int64_t *out) {
    // A slot that was swapped, and what lies there now.
    int64_t *const slots = (int64_t *)malloc(2 * draws * sizeof(int64_t)), *const moved = slots + draws;
    if (!slots) return 1;
    for (size_t r = 0; r < rows; r++, out += draws) {
        const int64_t count = counts[classes[r]], *const mine = order + starts[classes[r]];
        for (int64_t j = 0; j < (int64_t)draws; j++) {
            const int64_t slot = j + raw[j * rows + r] % (count - j);
            int64_t drawn = slot, own = j;
            for (int64_t i = 0; i < j; i++) {
                if (slots[i] == slot) drawn = moved[i];
                if (slots[i] == j) own = moved[i];
            }
            slots[j] = slot, moved[j] = own;
            out[j] = mine[drawn];
        }
    }
    free(slots);
    return 0;
}
