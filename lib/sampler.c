/* SPDX-License-Identifier: MIT
 * sampler.c: greedy choice, or a draw after top-k, temperature, top-p and min-p. The last step of a
 * decode loop: logits in, a token out. It must not know where logits come from. Sums are taken in
 * double and in a fixed order, so that a seed gives the same tokens on every machine. */
#include "sampler.h"

#include "params.h"

#include <math.h>

/* A token that may be drawn. */
typedef struct choice {
    float logit;
    float weight; /* probability relative to the best one's */
    int32_t id;
} choice;

struct kvc_sampler {
    kvc__mem mem; /* counts the choices */
    uint64_t random;
    double temperature, top_p, min_p;
    uint32_t top_k;
    uint32_t cap;
    choice *choice; /* [cap] */
};

int32_t kvc__sampler_create(const struct kvc_params *params, kvc_sampler **out, kvc__err *err) {
    kvc__mem mem;
    kvc__mem_init(&mem, &params->allocator, NULL);
    kvc_sampler *s = kvc__alloc(&mem, sizeof *s);
    *out = s;
    if (!s) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for a sampler");
    }
    kvc__mem_init(&s->mem, &params->allocator, NULL);
    s->random = params->seed;
    s->temperature = params->temperature;
    s->top_k = params->top_k;
    s->top_p = params->top_p;
    s->min_p = params->min_p;
    return KVC_OK;
}

void kvc__sampler_destroy(kvc_sampler *s) {
    if (s) {
        kvc__mem mem;
        kvc__mem_init(&mem, &s->mem.a, NULL);
        kvc__free(&s->mem, s->choice, (size_t)s->cap * sizeof *s->choice);
        kvc__free(&mem, s, sizeof *s);
    }
}

/* ---------------------------------------------------------------- greedy */

static int32_t pick_greedy(const float *logits, uint32_t n) {
    int32_t best = KVC_E_ARG;
    for (uint32_t i = 0; i < n; i++) {
        if (!isnan(logits[i]) && (best < 0 || logits[i] > logits[best])) {
            best = (int32_t)i;
        }
    }
    return best;
}

/* ---------------------------------------------------------------- order */

static bool choice_before(const choice *a, const choice *b) {
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

static void heap_sift(choice *c, uint32_t i, uint32_t n) {
    choice x = c[i];
    for (uint32_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && choice_before(&c[child + 1], &c[child])) {
            child++;
        }
        if (!choice_before(&c[child], &x)) {
            break;
        }
        c[i] = c[child];
    }
    c[i] = x;
}

/* Makes a heap with the best choice on top. */
static void heap_make(choice *c, uint32_t n) {
    for (uint32_t i = n / 2; i-- > 0;) {
        heap_sift(c, i, n);
    }
}

/* Moves the best of c[0, n) to c[n - 1]; the rest stays a heap. */
static const choice *heap_pop(choice *c, uint32_t n) {
    choice top = c[0];
    c[0] = c[n - 1];
    c[n - 1] = top;
    heap_sift(c, 0, n - 1);
    return &c[n - 1];
}

/* ---------------------------------------------------------------- drawing */

/* SplitMix64 (Steele, Lea, Flood 2014); the upper 53 bits as a number in [0, 1). */
static double random_next(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    z ^= z >> 31;
    return (double)(z >> 11) * 0x1p-53;
}

/* Fills the choices, by ascending id, NaN left out, and returns their number. */
static uint32_t choices_fill(choice *c, const float *logits, uint32_t n) {
    uint32_t k = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (!isnan(logits[i])) {
            c[k++] = (choice){.logit = logits[i], .id = (int32_t)i};
        }
    }
    return k;
}

/* Weighs n choices against the best logit and returns the sum. Equal ones are told apart first, so
 * that infinite logits and a vanishing temperature give 1 and 0, never NaN. */
static double choices_weigh(choice *c, uint32_t n, float best, double temperature) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        double d = ((double)c[i].logit - (double)best) / temperature;
        c[i].weight = c[i].logit == best ? 1.0f : expf((float)d);
        sum += (double)c[i].weight;
    }
    return sum;
}

/* Takes the best choices while top-p and min-p allow, at least one; they end up behind the rest,
 * the best one last. Returns their number and, in *sum, their weight. */
static uint32_t choices_cut(const kvc_sampler *s, choice *c, uint32_t n, double *sum) {
    double most = s->top_p < 1 ? s->top_p * *sum : *sum;
    uint32_t kept = 0;
    double weight = 0;
    heap_make(c, n);
    while (kept < n) {
        double w = (double)c[0].weight;
        if (kept > 0 && (weight >= most || w < s->min_p)) {
            break;
        }
        weight += w;
        heap_pop(c, n - kept);
        kept++;
    }
    *sum = weight;
    return kept;
}

static int32_t draw(kvc_sampler *s, const choice *c, uint32_t n, double sum) {
    double left = random_next(&s->random) * sum;
    const choice *last = c;
    for (uint32_t i = 0; i < n; i++) {
        if (c[i].weight > 0) {
            last = &c[i];
            left -= (double)c[i].weight;
            if (left < 0) {
                break;
            }
        }
    }
    return last->id;
}

static int32_t pick_random(kvc_sampler *s, const float *logits, uint32_t n_vocab) {
    int32_t greedy = pick_greedy(logits, n_vocab);
    if (greedy < 0) {
        return greedy;
    }
    choice *c = s->choice;
    uint32_t n = choices_fill(c, logits, n_vocab);
    if (s->top_k > 0 && s->top_k < n) {
        heap_make(c, n);
        for (uint32_t i = 0; i < s->top_k; i++) {
            heap_pop(c, n - i);
        }
        c += n - s->top_k;
        n = s->top_k;
    }
    double sum = choices_weigh(c, n, logits[greedy], s->temperature);
    if (s->top_p < 1 || s->min_p > 0) {
        uint32_t kept = choices_cut(s, c, n, &sum);
        c += n - kept;
        n = kept;
    }
    return draw(s, c, n, sum);
}

static int32_t choices_reserve(kvc_sampler *s, uint32_t n) {
    size_t bytes;
    if (n <= s->cap) {
        return KVC_OK;
    }
    if (!kvc__mul_size(n, sizeof *s->choice, &bytes)) {
        return KVC_E_NOMEM;
    }
    choice *c = kvc__alloc(&s->mem, bytes);
    if (!c) {
        return KVC_E_NOMEM;
    }
    kvc__free(&s->mem, s->choice, (size_t)s->cap * sizeof *s->choice);
    s->choice = c;
    s->cap = n;
    return KVC_OK;
}

int32_t kvc__sampler_sample(kvc_sampler *s, const float *logits, uint32_t n_vocab) {
    if (!logits || n_vocab == 0 || n_vocab > INT32_MAX) {
        return KVC_E_ARG;
    }
    if (!(s->temperature > 0)) {
        return pick_greedy(logits, n_vocab);
    }
    KVC_TRY(choices_reserve(s, n_vocab));
    return pick_random(s, logits, n_vocab);
}
