/* Loaded into a master: ends it, as a power cut does, just before a chosen commit reaches the disk.
 *
 * While the file that $POWER_CUT names is there, every sync of the database's log after a write to it is counted; the
 * one of the number in the file is never made. SIGKILL stops every thread where it is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char LOG[] = "/vivarium.sqlite-wal";
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static struct timespec synced;
static long count;

static int is_log(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path);
    ssize_t end = sizeof LOG - 1;
    return length >= end && memcmp(path + length - end, LOG, end) == 0;
}

static void before_sync(int file) {
    const char *moment = getenv("POWER_CUT");
    struct stat now;
    if (!moment || !is_log(file) || fstat(file, &now) != 0)
        return;
    pthread_mutex_lock(&turn);
    int is_written = memcmp(&now.st_mtim, &synced, sizeof synced) != 0;
    synced = now.st_mtim;
    FILE *number = is_written ? fopen(moment, "r") : NULL;
    if (number) {
        long last = 0;
        if (fscanf(number, "%ld", &last) == 1 && ++count >= last) {
            kill(getpid(), SIGKILL);
            pause();
        }
        fclose(number);
    }
    pthread_mutex_unlock(&turn);
}

int fsync(int file) {
    before_sync(file);
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(file);
}

int fdatasync(int file) {
    before_sync(file);
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(file);
}
