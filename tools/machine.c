/* SPDX-License-Identifier: MIT
 * machine.c: reads what the system says about itself. Nothing here can fail: what isn't known is
 * left out of the report. */
#include "machine.h"

#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

static void read_cpu(char *out, size_t cap) {
    char line[512];
    out[0] = '\0';
    FILE *f = fopen("/proc/cpuinfo", "r");
    if (f == NULL) {
        return;
    }
    while (fgets(line, sizeof line, f) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && colon != NULL) {
            const char *p = colon + 1 + strspn(colon + 1, " \t");
            snprintf(out, cap, "%.*s", (int)strcspn(p, "\n"), p);
            break;
        }
    }
    fclose(f);
}

void cmp_machine_read(cmp_machine *m) {
    memset(m, 0, sizeof *m);
    read_cpu(m->cpu, sizeof m->cpu);
    m->n_core = sysconf(_SC_NPROCESSORS_ONLN);
    struct utsname u;
    if (uname(&u) >= 0) {
        snprintf(m->kernel, sizeof m->kernel, "%.40s %.80s %.30s", u.sysname, u.release, u.machine);
    }
#if defined(__clang__)
    snprintf(m->compiler, sizeof m->compiler, "%s", __VERSION__);
#elif defined(__GNUC__)
    snprintf(m->compiler, sizeof m->compiler, "gcc %s", __VERSION__);
#endif
    m->load = -1;
    FILE *f = fopen("/proc/loadavg", "r");
    if (f != NULL) {
        if (fscanf(f, "%lf", &m->load) != 1) {
            m->load = -1;
        }
        fclose(f);
    }
}

double cmp_machine_available(void) {
    char line[256];
    double kib = -1;
    FILE *f = fopen("/proc/meminfo", "r");
    if (f == NULL) {
        return -1;
    }
    while (fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "MemAvailable: %lf", &kib) == 1) {
            break;
        }
    }
    fclose(f);
    return kib < 0 ? -1 : kib * 1024;
}
