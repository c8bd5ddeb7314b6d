// Pictures of classes, drawn without replacement: EpisodeSampler._pictures, to the bit.

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

struct Slot {
    uint64_t row;   // the last one that swapped this slot, counted from 1
    int64_t holds;  // since then
};

// What `_draw` in sampler.py does, one row after the other: `draws` of each row's class, of `counts` pictures each, at most `most`.
// raw (draws, rows), not negative; classes (rows); order, starts and counts as in FeatureBank; out (rows, draws). 1 without memory.
extern "C" int pictures(const int64_t *raw, const int64_t *classes, size_t rows, size_t draws, const int64_t *starts,
                        const int64_t *counts, size_t most, const int64_t *order, int64_t *out) {
    Slot *const slots = (Slot *)calloc(most, sizeof(Slot));
    if (!slots) return 1;
    const auto held = [&](int64_t slot, uint64_t row) { return slots[slot].row == row ? slots[slot].holds : slot; };
    for (size_t r = 0; r < rows; r++, out += draws) {
        const int64_t count = counts[classes[r]], *const mine = order + starts[classes[r]];
        for (int64_t j = 0; j < (int64_t)draws; j++) {
            const int64_t slot = j + raw[j * rows + r] % (count - j), own = held(j, r + 1);
            out[j] = mine[held(slot, r + 1)];
            slots[slot] = {r + 1, own};
        }
    }
    free(slots);
    return 0;
}
