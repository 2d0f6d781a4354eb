/* SPDX-License-Identifier: MIT
 * bench_recall.c: whether a cache policy still finds what was said long ago. Texts of filler give
 * a pass key early, to a name, and ask for it at the end; -k gives several, which a small model
 * mixes up even when nothing was given up. Scored are greedy decoding (all digits right, or not)
 * and the mean log-probability of the right digits. Over the public API.
 *
 *     bench_recall [-n TEXTS] [-t TOKENS] [-k KEYS] [-s SEED] [-q apart|prompt] [-f chat|text]
 * MODEL SPEC...
 *
 * -q apart (default): the prompt ends before the question, whose tokens then come one by one as
 * generated text does, so no policy knows what will be asked when it gives something up. -q prompt:
 * the question is the end of the prompt, which flatters policies that look at the last queries. */
#include "kvc/kvc.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_KEY = 8, N_PLACE = 4, MOST_TOKENS = 8192, MOST_ANSWER = 16, MOST_TEXT = 1 << 16 };

static const char *const filler[] = {
    "The road followed the river for a while and then turned to the hills.",
    "In the morning the market was full of people who had come from the villages.",
    "She put the letters back into the drawer and looked out of the window.",
    "The old bridge had been repaired in spring, and carts could cross it again.",
    "Nobody remembered who had planted the trees along the wall.",
    "It rained for two days, and the fields stood under water.",
    "The teacher asked them to write about the places they had seen.",
    "A train left at noon and another one late in the evening.",
    "He sold bread, cheese and apples, and in winter he sold wood.",
    "The house at the corner had been empty for many years.",
    "They talked about the weather, the harvest and the price of wool.",
    "From the tower one could see the lake and the mountains behind it.",
    "The clock in the hall was slow, and everybody knew it.",
    "Children played by the well until their mothers called them.",
    "The library kept old maps that few people ever asked for.",
    "At night the wind came down from the north and shook the doors.",
    "The baker's dog slept in the sun in front of the shop.",
    "In autumn the boats were pulled on land and painted.",
};
static const char *const names[] = {"Anna",  "Boris", "Clara", "David", "Elena", "Felix",
                                    "Grace", "Henry", "Irene", "Jacob", "Laura", "Martin",
                                    "Nora",  "Oscar", "Paula", "Robert"};
#define N_FILLER (sizeof filler / sizeof *filler)
#define N_NAME   (sizeof names / sizeof *names)

/* What is asked of the program. */
struct job {
    kvc_model *model;
    kvc_params *params;
    uint32_t n_vocab;
    uint32_t n_key;
    int n_text, n_token, apart, chat;
    uint64_t seed;
};

/* One text: its tokens up to the question, and for each key the question and the answer. */
struct text {
    int32_t token[MOST_TOKENS];
    size_t n;
    struct {
        int32_t question[64], answer[MOST_ANSWER];
        size_t n_question, n_answer;
        uint32_t place;
    } key[MOST_KEY];
};

/* What became of one spec. */
struct score {
    uint32_t found[N_PLACE], asked[N_PLACE];
    double log_p;
    size_t n_digit;
    uint64_t kv_bytes;
};

static void die(const char *what, const char *why) {
    fprintf(stderr, "bench_recall: %s: %s\n", what, why);
    exit(1);
}

static uint64_t rng;

static uint32_t below(uint32_t n) {
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (uint32_t)(rng >> 11) % n;
}

/* ---------------------------------------------------------------- texts */

static size_t tokens_of(const struct job *j, const char *text, int32_t *out, size_t cap) {
    size_t n = 0;
    if (kvc_model_tokenize(j->model, text, strlen(text), KVC_TEXT_SPECIAL, out, cap, &n) < 0) {
        die("tokenizing", kvc_model_error(j->model));
    }
    if (n > cap) {
        die("tokenizing", "the text is too long");
    }
    return n;
}

static void add(char *text, const char *sentence) {
    const size_t n = strlen(text);
    snprintf(text + n, MOST_TEXT - n, "%s", sentence);
}

/* Filler until the text has so many tokens. A sentence has about as many as the last one of all. */
static void fill(const struct job *j, char *text, size_t n_token) {
    static int32_t token[MOST_TOKENS];
    while (tokens_of(j, text, token, MOST_TOKENS) < n_token) {
        add(text, filler[below(N_FILLER)]);
        add(text, " ");
    }
}

/* The keys lie between one and seven tenths of text number n, as far from each other as can be. */
static void make_text(const struct job *j, uint32_t n, struct text *t) {
    static char text[MOST_TEXT];
    char line[256], digits[8];
    uint32_t first = below(N_NAME);
    text[0] = '\0';
    add(text,
        j->chat ? "<|im_start|>user\nRead this text and remember the pass keys in it.\n\n" : "");
    for (uint32_t i = 0; i < j->n_key; i++) {
        const char *name = names[(first + i * 3) % N_NAME];
        const double at = (i + n % N_PLACE / (double)N_PLACE) / j->n_key;
        t->key[i].place = (uint32_t)(at * N_PLACE);
        fill(j, text, (size_t)(j->n_token * (0.1 + 0.6 * at)));
        snprintf(digits, sizeof digits, " %u", 1000 + below(9000));
        snprintf(line, sizeof line,
                 "The pass key for %s is%s. Remember it.%s is the pass key for %s. ", name, digits,
                 digits, name);
        add(text, line);
        snprintf(line, sizeof line,
                 j->chat ? "\n\nWhat is the pass key for %s?<|im_end|>\n<|im_start|>assistant\n"
                           "The pass key for %s is"
                         : "\n\nThe pass key for %s was given above. The pass key for %s is",
                 name, name);
        t->key[i].n_question = tokens_of(j, line, t->key[i].question, 64);
        t->key[i].n_answer = tokens_of(j, digits, t->key[i].answer, MOST_ANSWER);
    }
    fill(j, text, (size_t)j->n_token);
    t->n = tokens_of(j, text, t->token, MOST_TOKENS - 128);
}

/* ---------------------------------------------------------------- asking */

static void decode(kvc_session *s, const int32_t *token, size_t n, uint32_t wants, uint32_t end) {
    kvc_run run = {.struct_size = sizeof run,
                   .wants = wants,
                   .session = s,
                   .token = token,
                   .n_token = (uint32_t)n,
                   .prompt_end = end};
    if (kvc_decode(&run, 1, sizeof run) < 0) {
        die(kvc_session_spec(s), kvc_session_error(s));
    }
}

/* The log-probability of a token after these logits, and whether it is the likeliest. */
static double log_p_of(const float *logits, uint32_t n, int32_t token, int *best) {
    double sum = 0, max = logits[0];
    for (uint32_t i = 1; i < n; i++) {
        max = logits[i] > max ? logits[i] : max;
    }
    for (uint32_t i = 0; i < n; i++) {
        sum += exp(logits[i] - max);
    }
    *best = logits[token] >= (float)max;
    return logits[token] - max - log(sum);
}

/* The right digits are given one by one; as long as each was the likeliest, greedy decoding would
 * have found them. */
static void ask(const struct job *j, kvc_session *s, const struct text *t, uint32_t key,
                struct score *score) {
    const int32_t *question = t->key[key].question, *answer = t->key[key].answer;
    int found = 1;
    for (size_t i = 0; j->apart && i < t->key[key].n_question; i++) {
        decode(s, question + i, 1, KVC_WANT_LAST, 0);
    }
    if (!j->apart) {
        decode(s, question, t->key[key].n_question, KVC_WANT_LAST, 0);
    }
    for (size_t i = 0; i < t->key[key].n_answer; i++) {
        int best;
        score->log_p += log_p_of(kvc_session_logits(s, 0), j->n_vocab, answer[i], &best);
        score->n_digit++;
        found &= best;
        decode(s, answer + i, 1, KVC_WANT_LAST, 0);
    }
    score->found[t->key[key].place] += (uint32_t)found;
    score->asked[t->key[key].place]++;
}

static void run_text(const struct job *j, const char *spec, const struct text *t,
                     struct score *score) {
    kvc_session *s = NULL, *fork = NULL;
    kvc_session_stats stats = {.struct_size = sizeof stats};
    if (kvc_session_open(j->model, spec, j->params, &s) < 0) {
        die(spec, kvc_params_error(j->params));
    }
    decode(s, t->token, t->n, KVC_WANT_NONE, (uint32_t)j->apart);
    kvc_session_get_stats(s, &stats);
    score->kv_bytes = stats.kv_bytes > score->kv_bytes ? stats.kv_bytes : score->kv_bytes;
    for (uint32_t key = 0; key < j->n_key; key++) {
        if (kvc_session_fork(s, &fork) < 0) {
            die(spec, kvc_session_error(s));
        }
        ask(j, fork, t, key, score);
        kvc_session_close(fork);
    }
    kvc_session_close(s);
}

static void print_row(const char *spec, const struct score *s) {
    uint32_t found = 0, asked = 0;
    for (int i = 0; i < N_PLACE; i++) {
        found += s->found[i];
        asked += s->asked[i];
    }
    printf("%-32s %4u of %-4u ", spec, found, asked);
    for (int i = 0; i < N_PLACE; i++) {
        printf(" %5.0f", 100.0 * s->found[i] / (s->asked[i] > 0 ? s->asked[i] : 1));
    }
    printf(" %8.3f %8.2f\n", s->log_p / (double)s->n_digit, (double)s->kv_bytes / (1 << 20));
    fflush(stdout);
}

/* ---------------------------------------------------------------- the program */

static int usage(void) {
    fprintf(stderr,
            "usage: bench_recall [-n TEXTS] [-t TOKENS] [-k KEYS] [-s SEED] [-q apart|prompt] "
            "[-f chat|text] MODEL SPEC...\n");
    return 2;
}

static int options(struct job *j, int argc, char **argv) {
    int c;
    while ((c = getopt(argc, argv, "n:t:k:s:q:f:")) != -1) {
        switch (c) {
        case 'n':
            j->n_text = atoi(optarg);
            break;
        case 't':
            j->n_token = atoi(optarg);
            break;
        case 'k':
            j->n_key = (uint32_t)atoi(optarg);
            break;
        case 's':
            j->seed = strtoull(optarg, NULL, 10);
            break;
        case 'q':
            j->apart = strcmp(optarg, "prompt") != 0;
            break;
        case 'f':
            j->chat = strcmp(optarg, "text") != 0;
            break;
        default:
            return -1;
        }
    }
    return j->n_text > 0 && j->n_key > 0 && j->n_key <= MOST_KEY && j->n_token >= 200 &&
                   j->n_token <= MOST_TOKENS - 512 && argc - optind >= 2
               ? 0
               : -1;
}

int main(int argc, char **argv) {
    static struct text t;
    struct job j = {.n_text = 24, .n_token = 1200, .n_key = 1, .apart = 1, .chat = 1, .seed = 1};
    kvc_model_info info = {.struct_size = sizeof info};
    if (options(&j, argc, argv) < 0) {
        return usage();
    }
    if (kvc_params_create(&j.params) < 0 ||
        kvc_params_set_i64(j.params, "n_ctx", j.n_token + 256) < 0 ||
        kvc_model_open(argv[optind], j.params, &j.model) < 0) {
        die(argv[optind], j.params != NULL ? kvc_params_error(j.params) : "no memory");
    }
    kvc_model_get_info(j.model, &info);
    j.n_vocab = info.n_vocab;
    printf("%d texts of %d tokens, %u key%s in each, question %s, %s\n", j.n_text, j.n_token,
           j.n_key, j.n_key > 1 ? "s" : "", j.apart ? "apart" : "in the prompt",
           j.chat ? "chat" : "plain text");
    printf("%-32s %12s  %23s %8s %8s\n", "", "found", "% by place: 1 to 7 10th", "log p",
           "KV, MiB");
    for (int i = optind + 1; i < argc; i++) {
        struct score score = {.log_p = 0};
        rng = j.seed * 0x9e3779b97f4a7c15u + 1;
        for (int n = 0; n < j.n_text; n++) {
            make_text(&j, (uint32_t)n, &t);
            run_text(&j, argv[i], &t, &score);
        }
        print_row(argv[i], &score);
    }
    kvc_model_close(j.model);
    kvc_params_destroy(j.params);
    return 0;
}
