// What the files of the fake GPU share.
#pragma once
#include <cstdlib>
#include <string>

#define API extern "C" __attribute__((visibility("default")))

// Note what the host asks of the device, while a test watches.
void note(std::string event);

// The value of one of the device's attributes, by its cudaDeviceAttr, which has the driver's numbers.
int device_attribute(int number);

// A value that is never destroyed, because torch's threads outlive main.
template <class T>
T& forever() {
  static T* value = new T;
  return *value;
}

// Something to point to, for what has no content here.
template <class T>
void make_handle(T* handle) {
  *handle = (T)calloc(1, 64);
}
